/**
 * What the tests of real clients share: a provider whose reply waits for the cuts of a proxy, so that each cut falls into
 * words that are being said, and the question whether what a client has shown is what is stored.
 */
import type { Test } from 'tap'
import { chunk, doneMarker, type FakeUpstream, type Script, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient } from '../support/client.ts'
import type { CuttingProxy } from './cutting-proxy.ts'

export interface WaitingUpstream extends FakeUpstream {
  /** The reply to this message says one piece more each time that the proxy has cut. All others are left to `answer`. */
  follow(message: string, proxy: CuttingProxy, cuts: number): void
}

/** Every piece has characters of two, three and four bytes in its first delta. */
const piece = (index: number) => `piece ${index}: Ñandú 漢字 🎈\u2028\r\n`

export async function startWaitingUpstream(t: Pick<Test, 'teardown'>): Promise<WaitingUpstream> {
  const followed = new Map<string, { readonly proxy: CuttingProxy; readonly cuts: number }>()
  let otherwise: Script = () => [doneMarker]

  async function* speak(proxy: CuttingProxy, cuts: number) {
    for (let index = 0; index < cuts; index += 1) {
      yield chunk({ content: piece(index) })
      await proxy.cut(index + 1)
    }
    yield chunk({ content: 'and the end.' }, 'stop')
    yield doneMarker
  }

  const upstream = await startFakeUpstream({
    script(call) {
      const { proxy, cuts = 0 } = followed.get(call.message) ?? {}
      return proxy === undefined ? otherwise(call) : speak(proxy, cuts)
    },
  })
  t.teardown(() => upstream.close())
  return {
    ...upstream,
    answer(script) {
      otherwise = script
    },
    follow(message, proxy, cuts) {
      followed.set(message, { proxy, cuts })
    },
  }
}

export const wholeText = (cuts: number) =>
  `${Array.from({ length: cuts }, (_, index) => piece(index)).join('')}and the end.`

/** @returns the text of the reply to a message, as it is stored for this visitor */
export async function storedReply(url: string, visitorToken: string, message: string): Promise<string> {
  const client = createClient(url, { 'x-visitor-token': visitorToken })
  const { body } = await client.get('/api/v1/sessions')
  for (const { id } of body.data) {
    const [question, reply] = await client.messages(id)
    if (question.content === message) return reply.content
  }
  throw new Error('nothing is stored')
}

/** @returns how often a provider was asked to answer this message */
export const callsFor = (upstream: FakeUpstream, message: string) =>
  upstream.calls.filter((call) => call.message === message).length
