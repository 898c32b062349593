/** The registry of generators, and the making of a document on a store that does as the test says. */
import { test } from 'tap'
import { Problem } from '../../src/errors.ts'
import type { Owner } from '../../src/http/identity.ts'
import type { Artifact } from '../../src/sessions/artifact-model.ts'
import type { Claim } from '../../src/sessions/artifacts.ts'
import {
  type ArtifactGenerator,
  type ArtifactMakerOptions,
  createArtifactMaker,
  createGenerators,
  type GeneratorInput,
  type MakingLimits,
} from '../../src/sessions/generators.ts'

const owner: Owner = { kind: 'user', key: 'user:ada', userId: 'ada', visitorHash: null }
const sessionId = '01890000-0000-7000-8000-00000000000a'

interface SceneOptions {
  readonly generate: ArtifactGenerator['generate']
  readonly limits?: Partial<MakingLimits>
  /** What the next claims answer, when not the claim. */
  readonly claims?: ('present' | 'taken')[]
  /** What becomes of the statement that stores the result. */
  readonly fill?: () => Promise<boolean>
  readonly release?: () => Promise<void>
}

function createScene({ generate, limits, claims = [], fill, release }: SceneOptions) {
  const calls: string[] = []
  let stored: Artifact | undefined
  const artifacts = {
    findArtifact: async () => stored,
    claim: async (_owner: Owner, session: string, name: string): Promise<Claim | 'present' | 'taken'> => {
      calls.push('claim')
      return claims.shift() ?? { sessionId: session, name, version: 1, contentType: 'text/plain', leaseUntil: 'x' }
    },
    fill: async ({ name, version }: Claim, body: string) => {
      calls.push('fill')
      if (fill !== undefined) return fill()
      stored = { name, version, content_type: 'text/plain', body, created_at: '' }
      return true
    },
    release: async () => {
      calls.push('release')
      await release?.()
    },
  }
  const lines: unknown[] = []
  const options = {
    artifacts,
    generators: createGenerators([{ name: 'a', contentType: 'text/plain', generate }]),
    sessions: { getSession: async () => ({}) },
    messages: { listMessages: async () => ({ data: [], next_cursor: null }) },
    logger: { error: (line: unknown) => lines.push(line) },
    limits,
  } as unknown as ArtifactMakerOptions
  return { ...createArtifactMaker(options), calls, lines }
}

test('a generator without a proper name, or with another’s, stops the start', async (t) => {
  const named = (name: string): ArtifactGenerator => ({ name, contentType: 'text/plain', generate: async () => '' })
  t.same([...createGenerators([named('a'), named('b')]).keys()], ['a', 'b'])
  for (const name of ['', '..', 'a b', 'x'.repeat(129)]) {
    t.throws(() => createGenerators([named(name)]), /cannot be the name of an artifact/, name)
  }
  t.throws(() => createGenerators([named('a'), named('b'), named('a')]), /Two generators make the artifact "a"/)
})

test('all who wait get the error of the one making, and the next one who asks another making', async (t) => {
  let made = 0
  const scene = createScene({
    generate: async () => {
      made += 1
      if (made === 1) throw new Problem('upstream_unavailable', 'Away.')
      return 'made'
    },
  })
  const asked = Array.from({ length: 20 }, () => scene.readOrMake(owner, sessionId, 'a'))
  for (const one of asked) await t.rejects(one, { code: 'upstream_unavailable', message: 'Away.' })
  t.equal(made, 1)
  t.same(scene.calls, ['claim', 'release'])
  t.match(await scene.readOrMake(owner, sessionId.toUpperCase(), 'a'), { body: 'made' })
  t.equal(made, 2)
  t.same(scene.lines, [], 'a problem is no news')
})

test('what another process makes is looked for until it is there, and then not made', async (t) => {
  const scene = createScene({
    generate: async () => t.fail('nobody is asked'),
    claims: ['taken', 'taken', 'taken', 'present'],
    limits: { lookMs: 1 },
  })
  await t.rejects(scene.readOrMake(owner, sessionId, 'a'), { code: 'not_found' }, 'the store of this test stays empty')
  t.same(scene.calls, ['claim', 'claim', 'claim', 'claim'])
})

test('when the database is away at the end, whoever waits is told so, and the claim is given back or passes', async (t) => {
  const away = () => Promise.reject(new Problem('db_unavailable'))
  const scene = createScene({ generate: async () => 'made', fill: away, release: away })
  await t.rejects(scene.readOrMake(owner, sessionId, 'a'), { code: 'db_unavailable' })
  t.same(scene.calls, ['claim', 'fill', 'release'])
})

test('a result whose claim is gone is dropped', async (t) => {
  const scene = createScene({ generate: async () => 'made', fill: async () => false })
  await t.rejects(scene.readOrMake(owner, sessionId, 'a'), { code: 'not_found' })
  t.same(scene.calls, ['claim', 'fill', 'release'])
})

test('a generator has its time and no more: whoever waits is told, and nothing is read for it afterwards', async (t) => {
  const inputs: GeneratorInput[] = []
  const scene = createScene({
    generate: (input) => {
      inputs.push(input)
      return new Promise(() => undefined)
    },
    limits: { generateMs: 20 },
  })
  const asked = [scene.readOrMake(owner, sessionId, 'a'), scene.readOrMake(owner, sessionId, 'a')]
  for (const one of asked) await t.rejects(one, { code: 'upstream_timeout', status: 504 })
  t.same(scene.calls, ['claim', 'release'])
  const [input] = inputs as [GeneratorInput]
  t.equal(input.signal.aborted, true)
  await t.rejects(async () => {
    for await (const _ of input.readMessages()) t.fail('a message was read')
  })
})

test('a close lets go of makings and of waits, and takes nothing more', async (t) => {
  const signals: AbortSignal[] = []
  const scene = createScene({
    generate: ({ signal }) => {
      signals.push(signal)
      return new Promise(() => undefined)
    },
    claims: ['taken'],
    limits: { lookMs: 60_000 },
  })
  const waits = scene.readOrMake(owner, sessionId, 'a')
  const makes = scene.readOrMake({ ...owner, key: 'user:grace' }, sessionId, 'a')
  const outcomes = Promise.allSettled([waits, makes])
  while (signals.length === 0) await Promise.resolve()
  await scene.close()
  t.equal(signals[0]?.aborted, true)
  for (const outcome of await outcomes) t.match(outcome, { status: 'rejected', reason: { code: 'draining' } })
  t.same(scene.calls, ['claim', 'claim', 'release'])
  await t.rejects(scene.readOrMake(owner, sessionId, 'a'), { code: 'draining' })
})

test('the log tells of a failure without its words', async (t) => {
  const scene = createScene({
    generate: async () => {
      throw new RangeError('secret words\n    at a secret place')
    },
  })
  await t.rejects(scene.readOrMake(owner, sessionId, 'a'), { code: 'internal' })
  t.match(scene.lines, [{ artifact: 'a', type: 'RangeError', stack: /generators\.test\.ts/ }])
  t.notMatch(JSON.stringify(scene.lines), /secret/)
})
