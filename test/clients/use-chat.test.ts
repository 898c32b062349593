/**
 * `useChat` of the AI SDK 5, 6 and 7 in Chromium, unmodified, with its default transport and `resume: true`: what is on the
 * screen is what is stored, whatever the page goes through, and a provider is asked once for each reply.
 *
 * Every version goes through a turn that is reloaded in the middle and at its end, a second turn, regenerate, stop and
 * errors. One also goes over connections that are cut, with the fetch of our client, and one without it. When more is asked
 * for (FAULT_TRIALS), all go also through two tabs and a stop that only leaves.
 */
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { build } from 'esbuild'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { begin, createGate, refuse, say } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openChromium } from '../browser/chromium.ts'
import { startGateway } from '../support/gateway.ts'
import { trialsOf } from '../support/trials.ts'
import { type CutPlace, startCuttingProxy } from './cutting-proxy.ts'
import { startWaitingUpstream, wholeText } from './runs.ts'

const versions = { 5: ['ai5-react', 'ai'], 6: ['ai6-react', 'ai6'], 7: ['ai7-react', undefined] } as const
const cuts: readonly CutPlace[] = ['between', 'data', 'id']
const isThorough = trialsOf(1) > 1
const { resolve } = createRequire(import.meta.url)

/** The page's script with a version of the SDK. @param core its `ai`; that which the React package brings when absent */
async function bundle(react: string, core: string | undefined): Promise<string> {
  const brought = new URL(`../../node_modules/${react}/node_modules/ai`, import.meta.url).pathname
  const ai = core === undefined ? brought : dirname(dirname(resolve(core)))
  const { outputFiles } = await build({
    entryPoints: [new URL('use-chat-page.js', import.meta.url).pathname],
    bundle: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    alias: { 'chat-react': react, 'chat-core': ai, ...(core !== undefined && { ai }) },
    define: { 'process.env.NODE_ENV': '"production"' },
    logLevel: 'error',
  })
  return outputFiles[0]?.text ?? ''
}

t.setTimeout(240_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  const upstream = await startWaitingUpstream(t)
  const gateway = await startGateway(t, { env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' } })
  for (const [version, [react, core]] of Object.entries(versions)) {
    await t.test(`ai ${version}`, (t) => tellAll(t, browser, version, bundle(react, core)))
  }

  async function tellAll(t: Test, browser: Browser, version: string, script: Promise<string>): Promise<void> {
    const context = await browser.newContext()
    t.teardown(() => context.close())
    const chat = `chat-${version}`
    const url = `${gateway.url}/try#${chat}`
    const complaints: string[] = []
    context.on('weberror', (error) => complaints.push(String(error.error())))
    const html = '<!doctype html><script type="module" src="/try.js"></script>'
    const body = await script
    async function serve(origin: string): Promise<void> {
      await context.route(`${origin}/try*`, (route) => route.fulfill({ contentType: 'text/html', body: html }))
      await context.route(`${origin}/try.js`, (route) => route.fulfill({ contentType: 'text/javascript', body }))
    }
    await serve(gateway.url)
    const page = await open(context, url)
    let asked = 0
    const begun = upstream.calls.length
    /** @param calls that the provider must have had more by now */
    async function check(t: Test, name: string, calls: number, on = page): Promise<void> {
      asked += calls
      t.same(await shown(on), await stored(context, chat), name)
      t.equal(upstream.calls.length - begun, asked, `${name}: calls of the provider`)
    }

    await t.test('a turn, reloaded in the middle and at its end', async (t) => {
      const gate = answerAtGate()
      await tell(page, 'Hi')
      await words(page, 'Once')
      await page.reload()
      await words(page, 'Once')
      t.equal((await stored(context, chat)).length, 1, 'the reply is still being made')
      gate.open()
      await settled(page)
      await check(t, 'after a reload in the middle', 1)
      t.match((await shown(page)).at(-1), 'Once upon a time.')
      await page.reload()
      await words(page, 'Once upon a time.')
      await settled(page)
      await check(t, 'after a reload at the end', 0)
    })

    await t.test('another turn, and its reply once more', async (t) => {
      upstream.answer(() => say({ text: 'Two it is.' }))
      await tell(page, 'And?')
      await words(page, 'Two it is.')
      await settled(page)
      await check(t, 'two turns', 1)
      upstream.answer(() => say({ text: 'Three, rather.' }))
      await press(page, 'Regenerate')
      await words(page, 'Three, rather.')
      await settled(page)
      await check(t, 'regenerated', 1)
      t.equal((await shown(page)).length, 4)
    })

    await t.test('a stop keeps what was said', async (t) => {
      answerAtGate()
      await tell(page, 'Go on')
      await words(page, 'Once')
      await press(page, 'Stop')
      await settled(page)
      await check(t, 'stopped', 1)
      t.equal(await page.getByRole('alert').count(), 0, 'a stop is no error')
    })

    await t.test('errors are shown in words for people', async (t) => {
      await tell(page, ' ')
      await page.getByRole('alert').getByText('The request is not valid. message is empty.', { exact: true }).waitFor()
      upstream.answer(() => refuse(401, { error: { message: 'the key sk-secret is wrong' } }))
      await tell(page, 'Again')
      await page
        .getByRole('alert')
        .getByText(/provider/)
        .waitFor()
      t.notMatch(await page.textContent('body'), /secret/)
      asked += 1
      await page.reload()
      await page
        .getByRole('alert')
        .getByText(/provider/)
        .waitFor()
      upstream.answer(() => say({ text: 'Now it works.' }))
      await press(page, 'Regenerate')
      await words(page, 'Now it works.')
      await settled(page)
      await check(t, 'after an error', 1)
    })

    // Of the cases below: what has just been said there would be told once more, and cut, before its turn.
    const ownChat = `${chat}-cut`
    if (version === '6') {
      await t.test(
        'connections that are cut within the words are not noticed, with the fetch of our client',
        async (t) => {
          const proxy = await startCuttingProxy(t, [gateway.url], cuts)
          await serve(proxy.url)
          upstream.follow('Cut me', proxy, cuts.length)
          const there = await open(context, `${proxy.url}/try?resuming#${ownChat}`)
          await tell(there, 'Cut me')
          await there.locator('article').last().and(there.getByText('and the end.')).waitFor()
          await settled(there)
          t.same(await shown(there), await stored(context, ownChat))
          asked += 1
          await check(t, 'the other chat', 0)
          t.equal((await shown(there)).at(-1), wholeText(cuts.length))
          t.equal(proxy.cuts, cuts.length)
          t.equal(await there.getByRole('alert').count(), 0)
          await there.close()
        },
      )
    }

    if (version === '7') {
      await t.test('a connection that is cut is an error to a bare fetch, and a reload shows the whole', async (t) => {
        const proxy = await startCuttingProxy(t, [gateway.url], ['between'])
        await serve(proxy.url)
        upstream.follow('Cut me', proxy, 1)
        const there = await open(context, `${proxy.url}/try#${ownChat}`)
        await tell(there, 'Cut me')
        await there.getByRole('alert').waitFor()
        await there.reload()
        await there.locator('article').last().and(there.getByText('and the end.')).waitFor()
        await settled(there)
        t.same(await shown(there), await stored(context, ownChat))
        asked += 1
        await check(t, 'the other chat', 0)
        t.equal((await shown(there)).at(-1), wholeText(1))
        await there.close()
      })
    }

    if (isThorough) {
      await t.test('two tabs show the same, and each can stop', async (t) => {
        const gate = answerAtGate()
        await tell(page, 'Both')
        await words(page, 'Once')
        const other = await open(context, url)
        await words(other, 'Once')
        gate.open()
        await Promise.all([settled(page), settled(other)])
        await check(t, 'the first tab', 1)
        await check(t, 'the second tab', 0, other)
        answerAtGate()
        await tell(other, 'Stop me')
        await words(other, 'Once')
        await page.reload()
        await words(page, 'Once')
        await press(page, 'Stop')
        await Promise.all([settled(page), settled(other)])
        await check(t, 'stopped, in the tab that asked', 1)
        await check(t, 'stopped, in the other', 0, other)
        await other.close()
      })

      await t.test("the SDK's own stop only leaves: the next message interrupts", async (t) => {
        answerAtGate()
        await tell(page, 'Tell me')
        await words(page, 'Once')
        await press(page, 'Leave')
        await settled(page)
        upstream.answer(() => say({ text: 'Something else.' }))
        await tell(page, 'Instead')
        await words(page, 'Something else.')
        await settled(page)
        await check(t, 'interrupted', 2)
      })

      await t.test('a reload while nothing goes on shows what is stored', async (t) => {
        const { app } = gateway
        await app.db.rows(sql`update chat_runs set ended_at = now() - interval '1 minute' where ended_at is not null`)
        await page.reload()
        await words(page, 'Something else.')
        await settled(page)
        await check(t, 'long after', 0)
      })
    }
    t.same(complaints, [], 'nothing was thrown')
  }

  /** A reply that begins, and goes on when the gate is opened. */
  function answerAtGate() {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Once' })
      await gate.opened
      yield* say({ text: ' upon a time.' })
    })
    return gate
  }

  async function stored(context: BrowserContext, chat: string): Promise<string[]> {
    const sessions = await (await context.request.get(`${gateway.url}/api/v1/sessions`)).json()
    const session = sessions.data.find(({ external_id }: { external_id: string }) => external_id === chat)
    const answer = await context.request.get(
      `${gateway.url}/api/v1/sessions/${session.id}/messages?branch=active&limit=100`,
    )
    const { data } = await answer.json()
    return data
      .filter(({ status }: { status: string }) => status !== 'streaming')
      .map(({ content }: { content: string }) => content)
  }
}

async function open(context: BrowserContext, url: string): Promise<Page> {
  context.setDefaultTimeout(30_000)
  const page = await context.newPage()
  await page.goto(url)
  await page.getByRole('button', { name: 'Send' }).waitFor()
  return page
}

async function tell(page: Page, text: string): Promise<void> {
  await page.getByRole('textbox').fill(text)
  await press(page, 'Send')
}

async function press(page: Page, name: string): Promise<void> {
  await page.getByRole('button', { name, exact: true }).click()
}

/** Resolves when the last message on the screen says so. */
async function words(page: Page, text: string): Promise<void> {
  await page
    .locator('article')
    .last()
    .and(page.getByText(text, { exact: true }))
    .waitFor()
}

async function settled(page: Page): Promise<void> {
  await page.locator('main[data-status=ready]').waitFor()
}

async function shown(page: Page): Promise<string[]> {
  return page.locator('article').allTextContents()
}
