/**
 * Artifacts that are made when they are asked for and not there: which ones can be (the registry), and the making, which
 * happens once, however many ask at the same time and whatever process they ask.
 *
 * In this process those who ask for the same document wait for one promise. Among processes a claim decides (artifacts.ts):
 * who has it makes the document, the others look every `lookMs`. A making belongs to no request: a client that leaves
 * changes nothing, and the result is stored. It is bounded in number (`atOnceMax`) and in time (`generateMs`), and
 * whoever waits for another process gives up after a lease and a making.
 *
 * When this process dies, the claim's lease passes and one of the others takes it over; when it closes, what is being
 * made is let go and the claims are given back, so the others do not wait. When the database is away at the end of a
 * making, its result is lost and the claim passes by itself. A generator that fails leaves nothing behind: its error goes
 * to all who wait here, those elsewhere try for themselves, and so does whoever asks next.
 *
 * What else is written meanwhile wins: the result becomes a version below it, or none when the document or its session
 * was deleted. So everybody reads what there is at the end, as the owner of the session that they are then.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import {
  type Artifact,
  type ArtifactText,
  type ArtifactType,
  artifactNamePattern,
  encodeBody,
} from './artifact-model.ts'
import type { ArtifactStore, Claim } from './artifacts.ts'
import type { MessageStore } from './messages.ts'
import type { Message, Session } from './model.ts'
import type { SessionStore } from './store.ts'

/**
 * The port for whoever can make a document of a session. One generator makes the artifact of its name in every session.
 */
export interface ArtifactGenerator {
  /** Of the artifact, `[A-Za-z0-9._:-]{1,128}`. */
  readonly name: string
  readonly contentType: ArtifactType
  /**
   * @returns a JSON value when `contentType` is application/json, else a string; 1 MiB at most
   * @throws Problem, which the clients get as it is; anything else is `internal` to them, and its message goes nowhere
   */
  generate(input: GeneratorInput): Promise<unknown>
}

export interface GeneratorInput {
  readonly session: Session
  /** Oldest first, of all branches, as `GET /sessions/:id/messages` shows them; a few are in memory at a time. */
  readMessages(): AsyncIterable<Message>
  /** Aborted when time is up or the process closes: the result is not waited for then, so nothing may go on. */
  readonly signal: AbortSignal
}

export type Generators = ReadonlyMap<string, ArtifactGenerator>

/** @throws Error at the start of the process when a name cannot be one, or is there twice */
export function createGenerators(list: readonly ArtifactGenerator[]): Generators {
  const generators = new Map<string, ArtifactGenerator>()
  for (const generator of list) {
    const { name } = generator
    if (!new RegExp(artifactNamePattern).test(name)) throw new Error(`"${name}" cannot be the name of an artifact`)
    if (generators.has(name)) throw new Error(`Two generators make the artifact "${name}"`)
    generators.set(name, generator)
  }
  return generators
}

export interface MakingLimits {
  /** Longest time of one generator. */
  readonly generateMs: number
  /** Time between two looks at what another process makes. */
  readonly lookMs: number
  /** Documents that this process makes, or waits for, at once. */
  readonly atOnceMax: number
}

export interface ArtifactMakerOptions {
  readonly artifacts: ArtifactStore
  readonly generators: Generators
  readonly sessions: Pick<SessionStore, 'getSession'>
  readonly messages: Pick<MessageStore, 'listMessages'>
  readonly logger: FastifyBaseLogger
  readonly limits?: Partial<MakingLimits> | undefined
}

export type ArtifactMaker = ReturnType<typeof createArtifactMaker>

const defaultLimits: MakingLimits = { generateMs: 60_000, lookMs: 250, atOnceMax: 16 }
/** By how much a lease is longer than a making, for the statements before and after it. */
const leaseGraceMs = 15_000
const retryAfterSeconds = 5
/** At the close, what giving back the claims may take. */
const closeMs = 1000
/** Of messages, which can be large. */
const pageRows = 20

export function createArtifactMaker(options: ArtifactMakerOptions) {
  const { artifacts, generators, sessions, messages, logger } = options
  const { generateMs, lookMs, atOnceMax } = { ...defaultLimits, ...options.limits }
  const leaseMs = generateMs + leaseGraceMs
  const underWay = new Map<string, Promise<void>>()
  const closing = new AbortController()

  /** Resolves when the document may be there. Whoever calls this awaits it, also when the client has left. */
  function make(owner: Owner, sessionId: string, generator: ArtifactGenerator): Promise<void> {
    // With the owner: a session that changes hands meanwhile is one that the first who asked may no longer read.
    const key = [owner.key, sessionId.toLowerCase(), generator.name].join(' ')
    const known = underWay.get(key)
    if (known !== undefined) return known
    if (closing.signal.aborted) throw new Problem('draining', undefined, { retryAfterSeconds })
    if (underWay.size >= atOnceMax) {
      throw new Problem('rate_limited', `${atOnceMax} artifacts are being made already.`, { retryAfterSeconds })
    }
    const made = claimAndFill(owner, sessionId, generator).finally(() => underWay.delete(key))
    underWay.set(key, made)
    return made
  }

  async function claimAndFill(owner: Owner, sessionId: string, generator: ArtifactGenerator): Promise<void> {
    const giveUpAt = performance.now() + leaseMs + generateMs
    for (;;) {
      const claim = await artifacts.claim(owner, sessionId, generator.name, generator.contentType, leaseMs)
      if (claim === 'present') return
      if (claim !== 'taken') return fill(owner, claim, generator)
      if (performance.now() > giveUpAt) throw tooSlow('Others were making the artifact for too long.')
      // An abort only ends the pause; what it means is said in the next line.
      await sleep(lookMs, undefined, { signal: closing.signal }).catch(() => undefined)
      if (closing.signal.aborted) throw new Problem('draining', undefined, { retryAfterSeconds })
    }
  }

  async function fill(owner: Owner, claim: Claim, generator: ArtifactGenerator): Promise<void> {
    const outOfTime = new AbortController()
    const timer = setTimeout(() => outOfTime.abort(), generateMs)
    const signal = AbortSignal.any([closing.signal, outOfTime.signal])
    try {
      const { text } = await unlessAborted(generate(owner, claim.sessionId, generator, signal), signal)
      if (await artifacts.fill(claim, text)) return
      // Its session is deleted, or somebody has deleted the document or taken the claim over.
      await artifacts.release(claim)
    } catch (error) {
      await artifacts.release(claim).catch(() => undefined) // its lease passes by itself
      if (closing.signal.aborted) throw new Problem('draining', undefined, { retryAfterSeconds })
      if (outOfTime.signal.aborted) throw tooSlow(`The artifact was not made within ${generateMs} ms.`)
      if (error instanceof Problem) throw error
      logger.error({ artifact: generator.name, ...describeFailure(error) }, 'a generator of artifacts failed')
      throw new Problem('internal', 'The artifact could not be made.')
    } finally {
      clearTimeout(timer)
    }
  }

  async function generate(
    owner: Owner,
    sessionId: string,
    generator: ArtifactGenerator,
    signal: AbortSignal,
  ): Promise<ArtifactText> {
    const session = await sessions.getSession(owner, sessionId)
    signal.throwIfAborted()
    async function* readMessages() {
      for (let cursor: string | null | undefined; cursor !== null; ) {
        signal.throwIfAborted()
        const query = { limit: pageRows, ...(cursor === undefined ? {} : { cursor }) }
        const page = await messages.listMessages(owner, sessionId, query)
        yield* page.data
        cursor = page.next_cursor
      }
    }
    const made = await generator.generate({ session, readMessages, signal })
    try {
      return encodeBody(generator.contentType, made)
    } catch (cause) {
      // That it is too large, say, is no mistake of the client, which would be told so.
      throw new Error('What a generator made is no artifact', { cause })
    }
  }

  return {
    /**
     * The document as it is now; when it is not there, it is made first.
     * @throws Problem `not_found` when the session is not this owner's, or nobody can make it, or it was deleted meanwhile;
     *   `rate_limited`; `upstream_timeout`; `draining`; `internal`, or whatever problem the generator has
     */
    async readOrMake(owner: Owner, sessionId: string, name: string): Promise<Artifact> {
      const found = await artifacts.findArtifact(owner, sessionId, name)
      if (found !== undefined) return found
      const generator = generators.get(name)
      if (generator === undefined) throw new Problem('not_found')
      await make(owner, sessionId, generator)
      const made = await artifacts.findArtifact(owner, sessionId, name)
      if (made === undefined) throw new Problem('not_found')
      return made
    },

    /** Lets go of what is being made, and gives the claims back. */
    async close(): Promise<void> {
      closing.abort()
      const enough = new AbortController()
      const all = Promise.allSettled(underWay.values())
      // An abort of the pause means that all is settled.
      const late = sleep(closeMs, undefined, { signal: enough.signal }).catch(() => undefined)
      await Promise.race([all, late])
      enough.abort()
    },
  }
}

function tooSlow(detail: string): Problem {
  return new Problem('upstream_timeout', detail, { retryAfterSeconds })
}

/** Settles as `work` does, or is rejected with the signal's reason; what `work` does later is of no interest. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason)
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
    signal.addEventListener('abort', abort)
    if (signal.aborted) abort()
  })
}

/** What kind of error it was, and where; not its message, which can hold words of the conversation. */
function describeFailure(error: unknown) {
  if (!(error instanceof Error)) return { type: typeof error, stack: '' }
  const frames = (error.stack ?? '').split('\n').filter((line) => /^\s+at .*:\d+:\d+\)?$/.test(line))
  return { type: error.name, stack: frames.slice(0, 8).join('\n') }
}
