/**
 * Streams of real dialects through the whole gateway, chopped at random places, watched by two viewers of which one
 * comes later and one is cut: what each was shown is what is stored, and what the adapter alone makes of the bytes.
 */
import { test } from 'tap'
import { raw, seededCuts, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, holdParts, isDone, type Received, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { collect, openaiFed, ownStreams, recordedStreams } from '../upstream/streams.ts'

const choppings = 2
const cutsOfEach = 40

for (const database of databases()) {
  test(`on ${database}, what is streamed is what is stored`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '1' } })
    const recordings = recordedStreams()
    if (recordings === undefined) t.comment('the recordings of providers are not here; own streams only')

    for (const { name, bytes } of [...ownStreams(), ...(recordings ?? [])]) {
      await t.test(name, async (t) => {
        const expected = await collect(openaiFed([bytes]))
        for (let seed = 1; seed <= choppings; seed += 1) {
          const client = createClient(gateway.url)
          upstream.answer(() => raw(bytes, seededCuts(bytes.length, cutsOfEach, seed)))
          const first = await client.send({ message: `Chopping ${seed}` })
          const later = await client.watch(`/api/v1/runs/${first.headers.get('x-run-id')}/events`)
          t.equal(await first.ended, 'clean')
          t.equal(await later.ended, 'clean')

          const [, stored] = await client.messages(first.headers.get('x-session-id') ?? '')
          t.equal(stored.content, expected.text, 'the stored text is what the provider sent')
          t.equal(shownText(first.received), stored.content)
          t.equal(shownText(later.received), stored.content)
          t.same(holdParts(first.received), plain(stored.parts), 'parts of every kind are the same')
          t.same(holdParts(later.received), plain(stored.parts))
          const reasoning = stored.parts.filter(({ kind }: { kind: string }) => kind === 'reasoning')
          t.equal(reasoning.map(({ text }: { text: string }) => text).join(''), expected.reasoning)
          const calls = stored.parts.filter(({ kind }: { kind: string }) => kind === 'tool_call')
          t.same(
            calls.map((part: { name: string; text: string }) => [part.name, part.text]),
            expected.calls.map((call) => [call.name, call.arguments]),
          )
          const done = first.received.find(isDone) as Received
          t.equal(done.data.status === 'completed', expected.error === undefined, 'a broken reply is never completed')
          t.equal(stored.status, done.data.status)
          t.same(done.data.usage, expected.usage, 'usage is counted also when the reply failed')
          t.equal(stored.finish_reason ?? undefined, expected.finish)
        }
      })
    }
  })
}

function plain(parts: { kind: string; text: string }[]): { kind: string; text: string }[] {
  return parts.map(({ kind, text }) => ({ kind, text }))
}
