/**
 * The chat page in a real browser, on a real gateway with its embedded database: what a reader sees, found by the roles
 * and names that a screen reader finds it by.
 */
import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { APIResponse, BrowserContext, Page } from 'playwright-core'
import t from 'tap'
import { startGateway } from '../support/gateway.ts'
import {
  button,
  endOfReply,
  lastReply,
  midReply,
  openChromium,
  openPage,
  say,
  shownReply,
  textbox,
} from './chromium.ts'
import { openWire } from './wire.ts'

interface StoredMessage {
  readonly role: string
  readonly status: string
  readonly content: string
  readonly parts: readonly { readonly kind: string; readonly text: string }[]
}

// Replies take their seconds, and the readers of these tests do not know of each other.
t.jobs = 6
t.setTimeout(180_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  const gateway = await startGateway(t)

  function sessionOf(page: Page): string {
    return new URL(page.url()).hash.replace('#/s/', '')
  }

  async function storedMessages(context: BrowserContext, sessionId: string): Promise<StoredMessage[]> {
    const messages: StoredMessage[] = []
    let cursor: string | null = null
    do {
      const url: string = `${gateway.url}/api/v1/sessions/${sessionId}/messages`
      const answer: APIResponse = await context.request.get(url, { params: cursor === null ? {} : { cursor } })
      const page: { data: StoredMessage[]; next_cursor: string | null } = await answer.json()
      messages.push(...page.data)
      cursor = page.next_cursor
    } while (cursor)
    return messages
  }

  async function storedReply(page: Page): Promise<{ status: string; text: string }> {
    const messages = await storedMessages(page.context(), sessionOf(page))
    const reply = messages.findLast((message) => message.role === 'assistant')
    return { status: `${reply?.status}`, text: (reply?.parts ?? []).map((part) => part.text).join('') }
  }

  /**
   * Posts, and is gone as soon as the gateway has accepted. Not with fetch: where that cuts a connection it opens another
   * one in reserve, and a closing server waits for the request that never comes on it (40 s were seen).
   */
  async function postAndLeave(url: string, cookie: string, body: string): Promise<void> {
    const headers = { 'content-type': 'application/json', cookie }
    const request = httpRequest(url, { method: 'POST', headers, agent: false }).end(body)
    const [answer] = await once(request, 'response')
    answer.destroy()
  }

  t.test('a message sent with Enter is answered, and the screen shows what is stored, to the letter', async (t) => {
    const { page, complaints, strayRequests } = await openPage(t, browser, gateway.url)
    await say(page, 'Tell me something 你好 👩‍👩‍👧')
    await midReply(page)
    t.equal(await textbox(page).inputValue(), '', 'the words have left the textbox')
    await endOfReply(page)
    const stored = await storedReply(page)
    t.equal(await shownReply(page), stored.text)
    t.equal(stored.status, 'completed')
    t.not(stored.text, '')
    t.equal(await page.getByRole('article', { name: 'You' }).textContent(), 'Tell me something 你好 👩‍👩‍👧')
    t.equal(await page.getByRole('alert').count(), 0)
    t.match(await page.title(), /^Tell me something/, 'the document has the title of the session')
    t.same(complaints, [], 'no console error and no violation of the policy')
    t.same(strayRequests, [], 'nothing is asked of anybody else')
  })

  t.test('the page comes with a policy that lets nothing in but its own files', async (t) => {
    for (const path of ['/', '/page/main.ts', '/client/index.ts', '/page/marked.js', '/page.css', '/favicon.svg']) {
      const answer = await fetch(gateway.url + path)
      const policy = answer.headers.get('content-security-policy') ?? ''
      t.equal(answer.status, 200, path)
      t.match(policy, /^default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'/, path)
      t.notMatch(policy, /unsafe/, path)
      t.equal(answer.headers.get('x-content-type-options'), 'nosniff', path)
      t.equal(answer.headers.get('referrer-policy'), 'no-referrer', path)
      t.equal(answer.headers.get('cache-control'), 'no-cache', path)
      const tag = answer.headers.get('etag') ?? ''
      // fetch on its own would say no-cache, which asks for the whole file.
      const headers = { 'if-none-match': tag, 'cache-control': 'max-age=0' }
      t.equal((await fetch(gateway.url + path, { headers })).status, 304, path)
    }
    for (const path of [
      '/page/',
      '/page/index.html',
      '/page/marked.d.ts',
      '/client/react.ts',
      '/page.ts',
      '/..%2fpage.ts',
      '/index.html/',
    ]) {
      t.equal((await fetch(gateway.url + path)).status, 404, `${path} is not served`)
    }
  })

  t.test('there is one log, one textbox, and buttons with the names that the documents use', async (t) => {
    const { page } = await openPage(t, browser, gateway.url)
    t.equal(await page.getByRole('log').count(), 1)
    t.equal(await page.getByRole('textbox').count(), 1)
    t.equal(await textbox(page).count(), 1)
    t.equal(await page.getByRole('navigation').count(), 1)
    for (const name of ['Send', 'Stop', 'New chat'] as const) t.equal(await button(page, name).count(), 1, name)
  })

  t.test('Stop is enabled only while a reply streams, and keeps the reply up to there', async (t) => {
    const { page } = await openPage(t, browser, gateway.url)
    t.equal(await button(page, 'Stop').isEnabled(), false, 'before')
    await say(page, 'Tell me a long story')
    await midReply(page)
    t.equal(await button(page, 'Send').isEnabled(), false, 'one reply at a time')
    await button(page, 'Stop').click()
    await endOfReply(page)
    t.equal(await button(page, 'Stop').isEnabled(), false, 'after')
    await lastReply(page).getByText('Stopped').waitFor()
    const stored = await storedReply(page)
    t.equal(stored.status, 'stopped')
    t.equal(await shownReply(page), stored.text)
    t.ok(stored.text.length >= 40)
    t.equal(await page.getByRole('alert').count(), 0, 'a stop is not a failure')
  })

  t.test('a reload in mid-reply shows the same session, and the reply goes on to its exact end', async (t) => {
    const { page, complaints } = await openPage(t, browser, gateway.url)
    await say(page, 'Tell me a long story')
    await midReply(page)
    const sessionId = sessionOf(page)
    await page.reload()
    await midReply(page)
    t.equal(sessionOf(page), sessionId)
    await endOfReply(page)
    t.same(await storedReply(page), { status: 'completed', text: await shownReply(page) })
    await page.reload()
    await lastReply(page).waitFor()
    t.same(await storedReply(page), { status: 'completed', text: await shownReply(page) }, 'and after the end')
    t.same(complaints, [])
  })

  t.test('New chat begins an empty session, and the navigation leads back, also to a reply that went on', async (t) => {
    const { page } = await openPage(t, browser, gateway.url)
    const chats = page.getByRole('navigation')
    await say(page, 'First story')
    await midReply(page)
    await button(page, 'New chat').click()
    await page.getByRole('log').getByRole('article').first().waitFor({ state: 'detached' })
    t.equal(await button(page, 'Stop').isEnabled(), false, 'nothing streams here')
    await say(page, 'Second story')
    await midReply(page)
    await chats.getByRole('link', { name: 'First story' }).click()
    await page.getByRole('article', { name: 'You' }).getByText('First story').waitFor()
    t.equal(await chats.locator('[aria-current=page]').textContent(), 'First story')
    await lastReply(page).waitFor()
    await endOfReply(page)
    t.same(await storedReply(page), { status: 'completed', text: await shownReply(page) })
    await chats.getByRole('link', { name: 'Second story' }).click()
    await page.getByRole('article', { name: 'You' }).getByText('Second story').waitFor()
    await lastReply(page).waitFor()
    await endOfReply(page)
    t.same(await storedReply(page), { status: 'completed', text: await shownReply(page) })
    await page.goBack()
    await page.getByRole('article', { name: 'You' }).getByText('First story').waitFor()
    t.equal(await chats.getByRole('link').count(), 2)
  })

  t.test('a session that is not there, or not ours, shows a new chat', async (t) => {
    const owner = await openPage(t, browser, gateway.url)
    await say(owner.page, 'Only for me')
    await midReply(owner.page, 1)
    const { page } = await openPage(t, browser, owner.page.url())
    await page.waitForURL((address) => !address.hash.startsWith('#/s/'))
    t.equal(await page.getByRole('article').count(), 0)
    t.equal(await page.getByRole('navigation').getByRole('link').count(), 0)
  })

  t.test('Shift+Enter is a new line, and the Enter of an input method sends nothing', async (t) => {
    const { page } = await openPage(t, browser, gateway.url)
    await textbox(page).fill('one')
    await textbox(page).press('Shift+Enter')
    await textbox(page).pressSequentially('two')
    t.equal(await textbox(page).inputValue(), 'one\ntwo')
    await textbox(page).dispatchEvent('keydown', { key: 'Enter', isComposing: true })
    await textbox(page).dispatchEvent('keydown', { key: 'Enter', keyCode: 229 })
    t.equal(await textbox(page).inputValue(), 'one\ntwo')
    t.equal(await page.getByRole('article').count(), 0)
    await button(page, 'Send').click()
    await midReply(page, 1)
    t.equal(await page.getByRole('article', { name: 'You' }).textContent(), 'one\ntwo')
  })

  t.test('a reply that fails says so in an alert, and the question stays', async (t) => {
    const provider = createServer((_request, response) => {
      response.writeHead(401, { 'content-type': 'application/json' }).end('{"error":{"message":"no such key"}}')
    })
    await new Promise<void>((resolve) => provider.listen(0, '127.0.0.1', resolve))
    t.teardown(() => provider.close())
    const { port } = provider.address() as AddressInfo
    const failing = await startGateway(t, {
      env: { OPENAI_API_KEY: 'sk-none', OPENAI_BASE_URL: `http://127.0.0.1:${port}/v1` },
    })
    const { page, complaints } = await openPage(t, browser, failing.url)
    await say(page, 'Will this work?')
    await page.getByRole('alert').getByText('The reply failed: ').waitFor()
    t.equal(await page.getByRole('article', { name: 'You' }).textContent(), 'Will this work?')
    t.match(await lastReply(page).textContent(), /Failed/)
    t.notMatch(await page.locator('body').textContent(), /no such key|sk-none/, 'the words of the provider stay behind')
    t.equal(await button(page, 'Stop').isEnabled(), false)
    await page.reload()
    await page.getByRole('alert').getByText('The reply failed: ').waitFor()
    t.same(complaints, [])
  })

  t.test('a message that is refused stays in the textbox, and the alert says why', async (t) => {
    const { page } = await openPage(t, browser, gateway.url)
    await page.route('**/api/v1/chat/stream', (route) =>
      route.fulfill({
        status: 429,
        headers: { 'content-type': 'application/problem+json', 'retry-after': '7' },
        body: JSON.stringify({ status: 429, code: 'rate_limited', title: 'Too many at once', detail: 'Wait.' }),
      }),
    )
    await say(page, 'My precious words')
    await page.getByRole('alert').getByText('Too many at once. Try again in 7 s.').waitFor()
    t.equal(await textbox(page).inputValue(), 'My precious words')
    await page.unroute('**/api/v1/chat/stream')
    await textbox(page).press('Enter')
    await midReply(page)
    t.equal(await page.getByRole('alert').count(), 0, 'the alert is gone')
    t.equal(await textbox(page).inputValue(), '')
  })

  t.test('a message whose answer is lost is sent again and counts once', async (t) => {
    const { page, context } = await openPage(t, browser, gateway.url)
    const keys: string[] = []
    await page.route('**/api/v1/chat/stream', async (route) => {
      const request = route.request()
      keys.push(request.postDataJSON().client_message_id)
      if (keys.length > 1) return route.continue()
      const headers = await request.allHeaders()
      await postAndLeave(request.url(), `${headers.cookie}`, `${request.postData()}`)
      await route.abort('connectionreset')
    })
    await say(page, 'Only once, please')
    await lastReply(page).waitFor()
    await endOfReply(page)
    t.equal(keys.length, 2)
    t.equal(keys[0], keys[1])
    const messages = await storedMessages(context, sessionOf(page))
    t.same(
      messages.map((message) => message.role),
      ['user', 'assistant'],
    )
    t.equal(await page.getByRole('navigation').getByRole('link').count(), 1)
    t.same(await storedReply(page), { status: 'completed', text: await shownReply(page) })
  })

  t.test('at 390 pixels textbox and Send are on the screen, and nothing scrolls sideways', async (t) => {
    const { page } = await openPage(t, browser, gateway.url, { viewport: { width: 390, height: 844 } })
    const isOnScreen = async (name: string) => {
      for (const control of [textbox(page), button(page, 'Send')]) {
        const box = await control.boundingBox()
        t.ok(box && box.x >= 0 && box.x + box.width <= 390 && box.y >= 0 && box.y + box.height <= 844, name)
      }
      t.ok(await page.evaluate('document.documentElement.scrollWidth <= innerWidth'), name)
      t.ok(await page.evaluate("document.querySelector('[role=log]').scrollWidth <= innerWidth"), `${name}: the log`)
    }
    await isOnScreen('empty')
    await say(page, 'w'.repeat(500))
    await midReply(page)
    await isOnScreen('with a word of 500 letters')
    await textbox(page).fill('line\n'.repeat(200))
    await isOnScreen('with a long text in the textbox')
    await page.getByRole('navigation').getByRole('button', { name: 'Chats' }).click()
    await page.getByRole('navigation').getByRole('link').waitFor()
    await isOnScreen('with the list of chats')
  })

  t.test('two tabs on the same run both end with the same text', async (t) => {
    const { page, context } = await openPage(t, browser, gateway.url)
    const idle = await context.newPage()
    await idle.goto(gateway.url)
    await say(page, 'Tell me a long story')
    await midReply(page)
    await idle.getByRole('navigation').getByRole('link').click()
    await midReply(idle)
    await Promise.all([endOfReply(page), endOfReply(idle)])
    const stored = await storedReply(page)
    t.equal(await shownReply(page), stored.text)
    t.equal(await shownReply(idle), stored.text)
    // A tab that shows the session follows a reply that another tab asked for, and can stop it.
    await say(page, 'And another one')
    await midReply(idle)
    await button(idle, 'Stop').click()
    await Promise.all([endOfReply(page), endOfReply(idle)])
    const second = await storedReply(page)
    t.equal(second.status, 'stopped')
    t.equal(await shownReply(page), second.text)
    t.equal(await shownReply(idle), second.text)
    t.equal(await idle.getByRole('article').count(), 4)
  })

  t.test('going offline and online in mid-reply loses nothing', async (t) => {
    // The browser's own offline mode leaves open connections alone. A real network does not.
    const wire = await openWire(t, gateway.url)
    const { page, context } = await openPage(t, browser, wire.url)
    await say(page, 'Tell me a long story')
    await midReply(page)
    await context.setOffline(true)
    wire.cut()
    await page.getByRole('status').getByText('Connection lost').waitFor()
    const shownOffline = await shownReply(page)
    const resumed = page.waitForRequest((request) => request.url().endsWith('/events'))
    await context.setOffline(false)
    t.match((await (await resumed).allHeaders())['last-event-id'], /^1-\d+$/, 'it takes up where it was')
    await endOfReply(page)
    const stored = await storedReply(page)
    t.same(stored, { status: 'completed', text: await shownReply(page) })
    t.ok(stored.text.startsWith(shownOffline), 'what was there stayed')
    t.equal(await page.getByRole('alert').count(), 0)
  })
}
