/**
 * A browser for the tests of the page: the system's Chromium with a new empty profile, and a watch over what the page
 * asks for and complains about. Without a browser these tests fail, unless TEST_WITHOUT_BROWSER=1 says that they may
 * be left out: a skip that nobody asked for would look like a pass.
 */
import { existsSync } from 'node:fs'
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core'
import type { Test } from 'tap'

const executablePath = process.env.CHROMIUM_PATH ?? '/usr/bin/chromium'
const installCommand = 'apt-get install -y --no-install-recommends chromium'
// No page of ours needs longer for one step, on a machine with two busy cores.
const stepMsMax = 30_000
const replyMsMax = 60_000

const args = [
  '--no-sandbox',
  '--disable-dev-shm-usage',
  '--disable-gpu',
  '--disable-background-networking',
  '--disable-quic',
  '--no-first-run',
  '--disable-component-update',
  '--disable-sync',
]

// A document that is no page of ours, such as that of a connection that was refused, has no storage.
const showAsWritten = `if (location.protocol === 'http:') localStorage.setItem('verbatim.as-written', 'yes')`

/** @returns the browser, closed when `t` ends; undefined when there is none and that was allowed */
export async function openChromium(t: Test): Promise<Browser | undefined> {
  if (!existsSync(executablePath)) {
    const reason = `There is no browser at ${executablePath}.`
    if (process.env.TEST_WITHOUT_BROWSER === '1') {
      console.error(`${reason} TEST_WITHOUT_BROWSER=1: the tests of the page are left out.`)
      t.plan(0, `${reason} TEST_WITHOUT_BROWSER=1`)
      return undefined
    }
    throw new Error(
      `${reason} Install one with: ${installCommand} · or name it in CHROMIUM_PATH · or set TEST_WITHOUT_BROWSER=1 to test without`,
    )
  }
  const browser = await chromium.launch({ executablePath, args })
  t.teardown(() => browser.close())
  return browser
}

export interface Reader {
  readonly context: BrowserContext
  readonly page: Page
  /** Console errors, uncaught errors and violations of the content security policy, in the order they came. */
  readonly complaints: string[]
  /** Requests that went anywhere but to the gateway. */
  readonly strayRequests: string[]
}

/**
 * Replies are shown as they are written, so that what is on the screen can be compared with what is stored to the letter.
 * @param options.script runs in each document before the page's own
 * @param options.markdown shows replies as Markdown, as the page does until somebody wants it otherwise
 * @returns a new visitor with an empty profile, who has opened the page
 */
export async function openPage(
  t: Test,
  browser: Browser,
  url: string,
  options: {
    readonly viewport?: { readonly width: number; readonly height: number }
    readonly script?: string
    readonly markdown?: boolean
  } = {},
): Promise<Reader> {
  const context = await browser.newContext({ viewport: options.viewport ?? { width: 1280, height: 800 } })
  if (options.script !== undefined) await context.addInitScript(options.script)
  if (options.markdown !== true) await context.addInitScript(showAsWritten)
  t.teardown(() => context.close())
  context.setDefaultTimeout(stepMsMax)
  const complaints: string[] = []
  const strayRequests: string[] = []
  context.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text())
  })
  context.on('weberror', (error) => complaints.push(String(error.error())))
  context.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) strayRequests.push(request.url())
  })
  const page = await context.newPage()
  await page.goto(url)
  return { context, page, complaints, strayRequests }
}

export function textbox(page: Page) {
  return page.getByRole('textbox', { name: 'Message', exact: true })
}

export function button(page: Page, name: 'Send' | 'Stop' | 'New chat', state: { disabled?: boolean } = {}) {
  return page.getByRole('button', { name, exact: true, ...state })
}

/** Types a message and sends it with Enter. */
export async function say(page: Page, text: string): Promise<void> {
  await textbox(page).fill(text)
  await textbox(page).press('Enter')
}

export function lastReply(page: Page) {
  return page.getByRole('log').getByRole('article', { name: 'Reply' }).last()
}

/** @returns the words of the last reply as they are on the screen, without labels and numbers beside them */
export async function shownReply(page: Page): Promise<string> {
  return (await lastReply(page).locator('[dir=auto]').allTextContents()).join('')
}

/** Resolves once the last reply shows at least `units` UTF-16 units and Stop says that it goes on. */
export async function midReply(page: Page, units = 40): Promise<void> {
  await button(page, 'Stop', { disabled: false }).waitFor()
  // `waitForFunction` with a string is refused by the page's policy, as it should be.
  await lastReply(page)
    .getByText(new RegExp(`.{${units}}`, 's'))
    .first()
    .waitFor()
}

/** Resolves once the reply has ended, whichever way. */
export async function endOfReply(page: Page): Promise<void> {
  await page.locator('[role=log] article[aria-busy=true]').waitFor({ state: 'detached', timeout: replyMsMax })
  await button(page, 'Stop', { disabled: true }).waitFor()
}
