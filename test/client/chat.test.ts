/**
 * A conversation as a screen shows it, through what the gateway refuses, drops and takes up again. The gateway is played by
 * the test; the hook on top of it is shown in a browser (clients/chromium.test.ts).
 */
import t from 'tap'
import { type ChatStore, createChat } from '../../src/client/chat.ts'
import { createClient } from '../../src/client/index.ts'
import { answer, delta, done, event, ids, refuse, run, type Step, say, startScript } from './scripted-server.ts'

const visitorToken = `vst_${'a'.repeat(43)}`

async function start(t: Parameters<typeof startScript>[0], sessionId: string | undefined, ...steps: readonly Step[]) {
  const server = await startScript(t, ...steps)
  const limits = { backOffFirstMs: 1, backOffMaxMs: 5 }
  const chat = createChat(createClient({ baseUrl: server.url, visitorToken, limits }), sessionId)
  t.teardown(() => chat.close())
  return { server, chat }
}

/** Resolves when the store shows it. */
function until(chat: ChatStore, found: (snapshot: ChatStore['snapshot']) => boolean): Promise<void> {
  return new Promise((resolve) => {
    const end = chat.subscribe(look)
    look()
    function look(): void {
      if (!found(chat.snapshot)) return
      queueMicrotask(() => end())
      resolve()
    }
  })
}

const isReady = ({ status }: ChatStore['snapshot']) => status === 'ready'
const shown = ({ snapshot }: ChatStore) => snapshot.messages.map(({ role, content }) => `${role}: ${content}`)
const stored = (role: string, content: string, more: object = {}) => ({
  id: `${role}-1`,
  role,
  content,
  parts: [{ kind: 'text', text: content }],
  status: 'completed',
  run_id: null,
  error: null,
  ...more,
})

t.test('a message is on the screen at once, and its reply grows behind it through a broken connection', async (t) => {
  const { chat, server } = await start(
    t,
    undefined,
    say(`${run}${delta('1-2', 0, 'One ')}`, 'cut'),
    say(`${delta('1-3', 4, 'two')}${done('1-4')}`),
  )
  const statuses: string[] = []
  chat.subscribe(() => statuses.at(-1) !== chat.snapshot.status && statuses.push(chat.snapshot.status))
  const sent = chat.send('Hello', { mode: 'fast' })
  t.same(shown(chat), ['user: Hello', 'assistant: '])
  t.equal(await chat.send('Too soon'), false)
  t.equal(await sent, true)
  await until(chat, isReady)
  t.same(shown(chat), ['user: Hello', 'assistant: One two'])
  t.same(statuses, ['sending', 'streaming', 'waiting', 'streaming', 'ready'])
  t.match(chat.snapshot, {
    sessionId: ids.session_id,
    messages: [{ id: ids.user_message_id }, { id: ids.message_id, run_id: ids.run_id, status: 'completed' }],
  })
  t.match(JSON.parse(server.asked[0]?.body ?? ''), { message: 'Hello', mode: 'fast' })
})

t.test('what is refused is taken back, and the words are still their author’s', async (t) => {
  const { chat } = await start(t, undefined, refuse(402, 'budget_exceeded'))
  t.equal(await chat.send('Hello'), false)
  t.same([shown(chat), chat.snapshot.status], [[], 'ready'])
  t.match(chat.snapshot.error, { code: 'budget_exceeded' })
})

t.test('what was not accepted is asked for again under its key, and anything else under another', async (t) => {
  const no = refuse(402, 'budget_exceeded')
  const yes = say(`${run}${delta('1-2', 0, 'a')}${done('1-3')}`)
  const { chat, server } = await start(
    t,
    undefined,
    no,
    no,
    no,
    yes,
    yes,
    no,
    no,
    no,
    no,
    no,
    no,
    refuse(422, 'idempotency_mismatch'),
    no,
  )
  const key = async (asked: Promise<boolean>) => {
    await asked
    await until(chat, isReady)
    return JSON.parse(server.asked.at(-1)?.body ?? '').client_message_id
  }
  const first = await key(chat.send('Hello'))
  const other = await key(chat.send('Hi'))
  const again = await key(chat.send('Hello'))
  t.not(other, first)
  t.equal(await key(chat.send('Hello')), again, 'the key of the last one is kept')
  const next = await key(chat.send('Hello'))
  t.not(next, again, 'what was accepted is over')
  t.equal(await key(chat.send('Hello', { client_message_id: 'mine' })), 'mine')

  const edited = await key(chat.edit('m1', 'Hello'))
  t.equal(await key(chat.edit('m1', 'Hello')), edited)
  t.not(await key(chat.edit('m2', 'Hello')), edited)
  const made = await key(chat.regenerate('m1'))
  t.equal(await key(chat.regenerate('m1', { mode: 'fast' })), made)
  t.equal(await key(chat.regenerate('m1')), made)
  t.not(await key(chat.regenerate('m1')), made, 'a key that means something else is not kept')
  t.equal(server.asked.length, 13)
})

t.test('leaving does not take back what is being sent, and who comes back sees it go on', async (t) => {
  for (const comesBack of [false, true]) {
    let accept: (() => void) | undefined
    const held: Step = (response, asked) => {
      accept = () => say(`${run}${delta('1-2', 0, 'a')}`, 'open')(response, asked)
    }
    const { chat, server } = await start(t, undefined, held)
    chat.open()
    const sent = chat.send('Hello')
    await server.request(0)
    chat.close()
    if (comesBack) {
      chat.open()
      t.same([shown(chat), chat.snapshot.status], [['user: Hello', 'assistant: '], 'sending'])
    }
    accept?.()
    t.equal(await sent, true)
    t.equal(chat.snapshot.sessionId, ids.session_id)
    if (comesBack) await until(chat, () => shown(chat)[1] === 'assistant: a')
    chat.close()
    await server.asked[0]?.closed
    t.equal(server.asked.length, 1)
  }
})

t.test('a session is opened with its reply that is under way, left, and opened again', async (t) => {
  const page = answer(200, {
    data: [
      stored('user', 'Hello'),
      stored('assistant', 'So far', { status: 'streaming', run_id: ids.run_id, cursor: '1-5' }),
    ],
    next_cursor: null,
  })
  const { chat, server } = await start(
    t,
    ids.session_id,
    page,
    say(delta('1-6', 6, ', so'), 'open'),
    page,
    say(`${delta('1-6', 6, ', so')}${delta('1-7', 10, ' good')}${done('1-8')}`),
  )
  t.equal(chat.snapshot.status, 'loading')
  chat.open()
  chat.open()
  await until(chat, () => shown(chat)[1] === 'assistant: So far, so')
  chat.close()
  await server.asked[1]?.closed
  chat.open()
  await until(chat, isReady)
  t.same(shown(chat), ['user: Hello', 'assistant: So far, so good'])
  t.equal(server.asked.length, 4)
  t.equal(server.asked[0]?.path, `/api/v1/sessions/${ids.session_id}/messages?limit=100&branch=active`)
  t.equal(server.asked[1]?.headers['last-event-id'], '1-5')
})

t.test('a session that is not there, and a reply that is gone, are told by the error', async (t) => {
  const missing = await start(t, ids.session_id, refuse(404, 'not_found'))
  missing.chat.open()
  await until(missing.chat, isReady)
  t.match(missing.chat.snapshot.error, { code: 'not_found' })

  const purged = await start(t, undefined, say(`${run}${delta('1-2', 0, 'a')}`, 'cut'), refuse(404, 'not_found'))
  await purged.chat.send('Hello')
  await until(purged.chat, isReady)
  t.match(purged.chat.snapshot.error, { code: 'not_found' })
  t.same(shown(purged.chat), ['user: Hello', 'assistant: a'])
})

t.test(
  'a reply made again and a message edited stand in the place of what was there, unless they are refused',
  async (t) => {
    const page = answer(200, { data: [stored('user', 'Hello'), stored('assistant', 'Bad')], next_cursor: null })
    const { chat, server } = await start(
      t,
      ids.session_id,
      page,
      refuse(409, 'session_busy', { retryable: true }),
      say(`${run}${delta('1-2', 0, 'Good')}${done('1-3')}`),
      say(
        `${run}${event('reset', { message_id: ids.message_id, parts: [], cursor: '1-2' }, '1-2')}${done('1-3', 'failed')}`,
      ),
    )
    chat.open()
    await until(chat, isReady)
    t.equal(await chat.regenerate('assistant-1'), false)
    t.same(shown(chat), ['user: Hello', 'assistant: Bad'])
    t.equal(await chat.regenerate('assistant-1', { mode: 'quality' }), true)
    await until(chat, isReady)
    t.same(shown(chat), ['user: Hello', 'assistant: Good'])
    t.equal(await chat.edit(chat.snapshot.messages[0]?.id ?? '', 'Hi'), true)
    await until(chat, isReady)
    t.same(shown(chat), ['user: Hi', 'assistant: '])
    t.equal(chat.snapshot.messages[1]?.status, 'failed')
    t.same(
      server.asked.slice(1).map(({ path }) => path),
      [
        '/api/v1/messages/assistant-1/regenerate',
        '/api/v1/messages/assistant-1/regenerate',
        `/api/v1/messages/${ids.user_message_id}/edit`,
      ],
    )
  },
)

t.test('stop while a message is being sent ends its reply as soon as there is one', async (t) => {
  let accept: (() => void) | undefined
  let end: (() => void) | undefined
  const { chat, server } = await start(
    t,
    undefined,
    (response, asked) => {
      accept = () => say(run, 'open')(response, asked)
      end = () => response.end(done('1-2', 'stopped'))
    },
    (response, asked) => {
      answer(200, {})(response, asked)
      end?.()
    },
  )
  const sent = chat.send('Hello')
  await server.request(0)
  const stopped = chat.stop()
  accept?.()
  await Promise.all([sent, stopped])
  await until(chat, isReady)
  t.equal(server.asked[1]?.path, `/api/v1/runs/${ids.run_id}/stop`)
  t.equal(chat.snapshot.messages[1]?.status, 'stopped')

  const refused = await start(t, undefined, refuse(402, 'budget_exceeded'))
  await Promise.all([refused.chat.send('Hello'), refused.chat.stop()])
  t.match(refused.chat.snapshot, { status: 'ready', error: { code: 'budget_exceeded' } })
})

t.test('stop asks for the end of the reply, and says when it cannot', async (t) => {
  let end: (() => void) | undefined
  const { chat } = await start(
    t,
    undefined,
    (response, asked) => {
      say(`${run}${delta('1-2', 0, 'a')}`, 'open')(response, asked)
      end = () => response.end(done('1-3', 'stopped'))
    },
    refuse(403, 'forbidden_origin'),
    (response, asked) => {
      answer(200, {})(response, asked)
      end?.()
    },
  )
  await chat.stop()
  await chat.send('Hello')
  await chat.stop()
  t.match(chat.snapshot.error, { code: 'forbidden_origin' })
  await chat.stop()
  await until(chat, isReady)
  t.equal(chat.snapshot.messages[1]?.status, 'stopped')
})
