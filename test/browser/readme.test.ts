/** The README's snippet for the browser, pasted into the console of a real one on the gateway's own page. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { startGateway } from '../support/gateway.ts'
import { openChromium, openPage } from './chromium.ts'

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
const snippet = /```js\n([\s\S]*?)```/.exec(readme)?.[1] ?? ''

t.setTimeout(60_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  t.test('the EventSource example prints the whole reply, once', async (t) => {
    const gateway = await startGateway(t, { env: { MODEL_BALANCED: 'demo:fast' } })
    const { page } = await openPage(t, browser, gateway.url)
    t.match(snippet, 'new EventSource')
    const printed = page.waitForEvent('console')
    await page.evaluate(snippet)
    const message = await printed
    const [parts, done] = await Promise.all(message.args().map((value) => value.jsonValue()))
    t.match(done, { status: 'completed' })
    const { data: sessions } = await (await page.request.get(`${gateway.url}/api/v1/sessions`)).json()
    t.equal(sessions.length, 1)
    const { data: messages } = await (
      await page.request.get(`${gateway.url}/api/v1/sessions/${sessions[0].id}/messages`)
    ).json()
    t.equal(parts.map((part: { text: string }) => part.text).join(''), messages[1].content)
  })
}
