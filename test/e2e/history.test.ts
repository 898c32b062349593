/** What goes upstream as context: the last messages, the new one included, beginning with a person, never a failed nothing. */
import { test } from 'tap'
import { refuse, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

for (const database of databases()) {
  test(`on ${database}, at most SESSION_MAX_MESSAGES messages go upstream`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const env = { OPENAI_BASE_URL: upstream.url, SESSION_MAX_MESSAGES: '4' }
    const gateway = await startGateway(t, { database, env })
    const client = createClient(gateway.url)
    const sent = () => upstream.calls.at(-1)?.body?.messages?.map(({ role, content }) => `${role}: ${content}`)

    upstream.answer(() => say({ text: 'r1' }))
    const first = await client.post('/api/v1/chat/message', { message: 'm1' })
    const session_id = first.body.session.id
    const ask = (message: string) => client.post('/api/v1/chat/message', { message, session_id })
    upstream.answer(() => say({ text: 'r2' }))
    await ask('m2')
    t.same(sent(), ['user: m1', 'assistant: r1', 'user: m2'])

    upstream.answer(() => say({ text: 'r3' }))
    await ask('m3')
    t.same(sent(), ['user: m2', 'assistant: r2', 'user: m3'], 'a window that would begin with a reply begins after it')

    upstream.answer(() => refuse(400))
    t.equal((await ask('m4')).status, 502)
    upstream.answer(() => say({ text: 'r5' }))
    await ask('m5')
    t.same(sent(), ['user: m4', 'user: m5'], 'a reply of which nothing came is no message')
  })
}
