/**
 * What a reader can do with chats, replies and the page itself, in a real browser on a real gateway: find, rename, delete,
 * take back, take along; ask again, change, rate; sign in; look inside. Replies come at once, and several promises share
 * one page where one leads to the next.
 */
import { readFile } from 'node:fs/promises'
import type { BrowserContext, Download, Page, Request, Route } from 'playwright-core'
import t, { type Test } from 'tap'
import { startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'
import { button, endOfReply, lastReply, openChromium, openPage, say, shownReply, textbox } from './chromium.ts'

const secret = 'a secret of this test, long enough for HS256'
const phone = { width: 390, height: 844 } as const

t.jobs = 3
t.setTimeout(180_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  const gateway = await startGateway(t, { env: { MODEL_BALANCED: 'demo:fast', JWT_SECRET: secret } })

  async function ask(page: Page, text: string): Promise<void> {
    const before = await page.getByRole('article').count()
    await say(page, text)
    await page
      .getByRole('article')
      .nth(before + 1)
      .waitFor()
    await endOfReply(page)
  }

  // biome-ignore lint/suspicious/noExplicitAny: what the gateway says is checked where it is read
  async function read(context: BrowserContext, path: string): Promise<any> {
    return (await context.request.get(`${gateway.url}/api/v1${path}`)).json()
  }

  const sessionOf = (page: Page) => new URL(page.url()).hash.replace('#/s/', '')
  const chats = (page: Page) => page.getByRole('navigation').getByRole('link')
  const named = (page: Page, name: string) => page.getByRole('button', { name, exact: true })

  async function openMenu(page: Page, title: string, item: string): Promise<void> {
    await chats(page).filter({ hasText: title }).hover()
    await page.getByRole('button', { name: `Actions for ${title}` }).click()
    await page.getByRole('menuitem', { name: item }).click()
  }

  async function saved(download: Promise<Download>): Promise<{ name: string; text: string }> {
    const file = await download
    return { name: file.suggestedFilename(), text: await readFile(await file.path(), 'utf8') }
  }

  t.test('chats are found, renamed, exported, deleted and brought back, in all tabs', async (t) => {
    const { page, context, complaints } = await openPage(t, browser, gateway.url)
    await ask(page, 'About the zebra')
    await button(page, 'New chat').click()
    await ask(page, 'About the okapi')
    const other = await context.newPage()
    await other.goto(gateway.url)
    await chats(other).nth(1).waitFor()

    const queries: string[] = []
    page.on('request', (request) => {
      const query = new URL(request.url()).searchParams.get('q')
      if (query !== null) queries.push(query)
    })
    const search = page.getByRole('searchbox', { name: 'Search chats' })
    // A slow keyboard may ask in between, and the first letter alone finds the zebra.
    const asked = page.waitForResponse((response) => new URL(response.url()).searchParams.get('q') === 'ZEBRA')
    await search.pressSequentially('ZEBRA')
    await asked
    await chats(page).filter({ hasText: 'okapi' }).waitFor({ state: 'detached' })
    t.same(await chats(page).allTextContents(), ['About the zebra'])
    t.ok(queries.length < 5 && queries.at(-1) === 'ZEBRA', `not each letter is a question: ${queries}`)
    await search.fill('quagga xylophone')
    await page.getByText('No chat with “quagga xylophone”.').waitFor()
    await search.press('Escape')
    await chats(page).nth(1).waitFor()

    await openMenu(page, 'About the zebra', 'Rename')
    const box = page.getByRole('textbox', { name: 'New title' })
    t.equal(await box.inputValue(), 'About the zebra')
    await box.fill('Striped: <b>*/')
    await box.press('Enter')
    await chats(other).filter({ hasText: 'Striped: <b>*/' }).waitFor()
    t.equal(await page.evaluate('document.activeElement.textContent'), 'Striped: <b>*/', 'the focus is back')

    await chats(page).filter({ hasText: 'Striped' }).click()
    await lastReply(page).waitFor()
    const id = sessionOf(page)
    for (const [item, format] of [
      ['Export as Markdown', 'md'],
      ['Export as JSON', 'json'],
    ] as const) {
      const download = page.waitForEvent('download')
      await openMenu(page, 'Striped: <b>*/', item)
      const { name, text } = await saved(download)
      t.equal(name, `Striped b.${format}`)
      const stored = await context.request.get(`${gateway.url}/api/v1/sessions/${id}/export?format=${format}`)
      const withoutTime = (exported: string) => exported.replace(/("exported_at": ?"|Exported: )[^"\n]*/, '')
      t.equal(withoutTime(text), withoutTime(await stored.text()), item)
    }

    await openMenu(page, 'Striped: <b>*/', 'Delete')
    await page.getByText('Deleted “Striped: <b>*/”.').waitFor()
    await page.getByRole('article').first().waitFor({ state: 'detached' })
    await chats(other).filter({ hasText: 'Striped' }).waitFor({ state: 'detached' })
    t.equal((await context.request.get(`${gateway.url}/api/v1/sessions/${id}`)).status(), 404)
    await named(page, 'Undo').click()
    await page.getByRole('article').nth(1).waitFor()
    t.equal(sessionOf(page), id, 'it is on the screen again')
    await chats(other).filter({ hasText: 'Striped' }).waitFor()
    t.same(complaints, [])
  })

  t.test('a reply is made again, a message changed, and each version stays where it was', async (t) => {
    const { page, context, complaints } = await openPage(t, browser, gateway.url)
    await context.grantPermissions(['clipboard-read', 'clipboard-write'])
    await ask(page, 'First question')
    const first = await shownReply(page)
    await lastReply(page).getByRole('button', { name: 'Copy reply' }).click()
    await lastReply(page).getByRole('button', { name: 'Copied' }).waitFor()
    t.equal(await page.evaluate('navigator.clipboard.readText()'), first, 'what is copied is what is stored')

    const streamed = page.waitForResponse((response) => response.url().endsWith('/regenerate'))
    await lastReply(page).getByRole('button', { name: 'Regenerate' }).click()
    t.match((await streamed).headers()['content-type'], 'text/event-stream')
    await lastReply(page).getByText('2 / 2').waitFor()
    await endOfReply(page)
    t.equal(await page.getByRole('article').count(), 2, 'one version at a time')
    await lastReply(page).getByRole('button', { name: 'Previous version' }).click()
    await lastReply(page).getByText('1 / 2').waitFor()
    t.equal(await shownReply(page), first)

    await ask(page, 'Second question')
    const you = page.getByRole('article', { name: 'You' }).last()
    await you.getByRole('button', { name: 'Edit message' }).click()
    const box = page.getByRole('textbox', { name: 'Edited message' })
    t.equal(await box.inputValue(), 'Second question')
    await box.press('Escape')
    await box.waitFor({ state: 'detached' })
    await textbox(page).press('ArrowUp')
    await box.fill('Another second question')
    await page.route('**/edit', loseAnswer, { times: 1 })
    await named(page, 'Send again').click()
    await page.getByRole('alert').getByText('The message was not sent').waitFor()
    t.match(complaints.splice(0), [/500/], 'as far as the page knows')
    await named(page, 'Send again').click()
    await page.getByRole('article', { name: 'You' }).last().getByText('Another second question').waitFor()
    await endOfReply(page)
    t.equal(await page.getByRole('article').count(), 4)

    const { data } = await read(context, `/sessions/${sessionOf(page)}/messages`)
    const [question, reply1, reply2, question2, , question3, reply3] = data
    t.equal(data.length, 7, 'what was sent again is there once')
    t.equal(reply2.parent_id, question.id)
    t.equal(question2.parent_id, reply1.id, 'it followed the version that was on the screen')
    t.equal(question3.parent_id, reply1.id)
    t.equal(reply3.parent_id, question3.id)
    t.equal(await shownReply(page), reply3.content)

    await page.reload()
    await page.getByRole('article').nth(3).waitFor()
    await endOfReply(page)
    t.equal(await shownReply(page), reply3.content, 'the newest version is what a reload shows')
    await page.getByRole('article', { name: 'You' }).last().getByRole('button', { name: 'Previous version' }).click()
    await page.getByRole('article', { name: 'You' }).last().getByText('Second question', { exact: true }).waitFor()
    t.equal(await lastReply(page).getByText('1 / 2').count(), 0, 'with the reply that it had')

    await lastReply(page).getByRole('button', { name: 'Bad reply' }).click()
    await page.getByRole('textbox', { name: 'What was wrong with it?' }).fill('Too long')
    await named(page, 'Send comment').click()
    await page.getByRole('textbox', { name: 'What was wrong with it?' }).waitFor({ state: 'detached' })
    t.equal(await lastReply(page).getByRole('button', { name: 'Bad reply' }).getAttribute('aria-pressed'), 'true')
    const rated = await read(context, `/sessions/${sessionOf(page)}/messages`)
    t.same(rated.data[4].feedback, { rating: -1, comment: 'Too long' })
    t.same(complaints, [])
  })

  t.test('a pasted token signs in, and what the visitor had comes along only when the reader says so', async (t) => {
    const token = makeToken(secret, { sub: 'reader-1', name: 'Ada', exp: inSeconds(600) })
    const { page, context, complaints } = await openPage(t, browser, gateway.url)
    await ask(page, 'As a visitor')
    const dialog = page.getByRole('dialog', { name: 'Sign in' })
    await named(page, 'Sign in').click()
    for (const [pasted, problem] of [
      [makeToken(secret, { sub: 'reader-1', exp: inSeconds(-600) }), 'This token expired on'],
      ['two words', 'A token has no spaces'],
      [
        makeToken('another secret, which nobody knows here', { sub: 'x', exp: inSeconds(600) }),
        'does not accept this token',
      ],
    ] as const) {
      await dialog.getByLabel('Token').fill(pasted)
      await dialog.getByRole('button', { name: 'Sign in' }).click()
      await dialog.getByRole('alert').getByText(problem).waitFor()
    }
    t.equal(await page.getByText('Visitor', { exact: true }).count(), 1, 'nothing has changed')

    const trial = Promise.withResolvers<Route>()
    const ended = Promise.withResolvers<string>()
    await page.route('**/api/v1/sessions?limit=1', trial.resolve, { times: 1 })
    const tellEnd = (how: string) => (request: Request) => request.url().endsWith('?limit=1') && ended.resolve(how)
    page.on('requestfailed', tellEnd('left'))
    page.on('requestfinished', tellEnd('answered'))
    await dialog.getByLabel('Token').fill(token)
    await dialog.getByRole('button', { name: 'Sign in' }).click()
    const held = await trial.promise
    await dialog.getByRole('button', { name: 'Cancel' }).click()
    await held.continue().catch(() => undefined) // there is nobody who waits for it
    t.equal(await ended.promise, 'left')
    t.equal(await page.getByText('Visitor', { exact: true }).count(), 1, 'who has cancelled is not signed in later')
    t.equal(await dialog.isVisible(), false)

    await named(page, 'Sign in').click()
    await dialog.getByLabel('Token').fill(token)
    await dialog.getByRole('button', { name: 'Sign in' }).click()
    await page.getByText('Ada', { exact: true }).waitFor()
    const claim = page.getByRole('dialog', { name: 'Take your chats along?' })
    await claim.waitFor()
    t.equal(await chats(page).count(), 0, 'not yet')
    await claim.getByRole('button', { name: 'Take them along' }).click()
    await page.getByText('One chat is yours now.').waitFor()
    await chats(page).filter({ hasText: 'As a visitor' }).waitFor()
    await page.reload()
    await chats(page).filter({ hasText: 'As a visitor' }).click()
    await lastReply(page).waitFor()

    const kept = () => page.evaluate('JSON.stringify([localStorage, sessionStorage])')
    t.match(await kept(), token.slice(-20))
    t.equal(await page.evaluate("localStorage.getItem('verbatim.token')"), null, 'it ends with the tab')
    const elsewhere = await context.newPage()
    await elsewhere.goto(gateway.url)
    await elsewhere.getByText('Visitor', { exact: true }).waitFor()
    const session = sessionOf(page)
    await listenToTabs(page)
    await elsewhere.evaluate(keepToken(makeToken(secret, { sub: 'reader-0', exp: inSeconds(600) })))
    await page.evaluate('told')
    t.equal(sessionOf(page), session, 'a tab with a token of its own stays where it is')
    await elsewhere.evaluate("localStorage.removeItem('verbatim.token')")
    await named(page, 'Sign out').click()
    await page.getByText('Visitor', { exact: true }).waitFor()
    t.notMatch(await kept(), token.slice(-20), 'it is gone')
    await page.getByRole('article').first().waitFor({ state: 'detached' })
    t.equal(await chats(page).count(), 0)
    // The browser itself notes an answer of 401; the page adds nothing.
    t.same(
      complaints.filter((text) => !text.includes('401')),
      [],
    )
  })

  t.test('a token that is no longer good leads to the dialog, and the next one goes on', async (t) => {
    const stale = makeToken('a key that was taken out of use long ago', { sub: 'reader-2', exp: inSeconds(600) })
    const fresh = makeToken(secret, { sub: 'reader-2', exp: inSeconds(600) })
    const { page, context } = await openPage(t, browser, gateway.url, {
      script: `if (location.protocol === 'http:' && !localStorage.getItem('seen')) { localStorage.setItem('seen', '1'); localStorage.setItem('verbatim.token', '${stale}') }`,
    })
    const dialog = page.getByRole('dialog', { name: 'Sign in' })
    await dialog.getByRole('alert').getByText('no longer accepts the token').waitFor()
    await dialog.getByLabel('Token').fill(fresh)
    await dialog.getByLabel('Keep me signed in on this device').check()
    await dialog.getByRole('button', { name: 'Sign in' }).click()
    await dialog.waitFor({ state: 'hidden' })
    await ask(page, 'Signed in')
    t.equal(await page.evaluate("localStorage.getItem('verbatim.token')"), fresh)

    const session = sessionOf(page)
    const elsewhere = await context.newPage()
    await elsewhere.goto(gateway.url)
    const renewed = makeToken(secret, { sub: 'reader-2', exp: inSeconds(700) })
    const asked = page.waitForRequest((request) => request.headers().authorization === `Bearer ${renewed}`)
    await elsewhere.evaluate(keepToken(renewed))
    await asked
    t.equal(sessionOf(page), session, 'a token that is renewed in another tab leaves the chat on the screen')
    await elsewhere.evaluate(keepToken(makeToken(secret, { sub: 'reader-3', exp: inSeconds(600) })))
    await page.getByText('reader-3', { exact: true }).waitFor()
    await page.getByRole('article').first().waitFor({ state: 'detached' })
    t.equal(sessionOf(page), '#/', 'somebody else begins anew')
  })

  t.test('where the browser keeps nothing, a sign-in lasts as long as the page', async (t) => {
    const full = `Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }`
    const { page, complaints } = await openPage(t, browser, gateway.url, { script: full, markdown: true })
    await named(page, 'Sign in').click()
    const dialog = page.getByRole('dialog', { name: 'Sign in' })
    await dialog.getByLabel('Token').fill(makeToken(secret, { sub: 'reader-4', exp: inSeconds(600) }))
    await dialog.getByRole('button', { name: 'Sign in' }).click()
    await page.getByText('reader-4', { exact: true }).waitFor()
    await named(page, 'Sign out').click()
    await page.getByText('Visitor', { exact: true }).waitFor()
    t.same(complaints, [])
  })

  t.test('everything is within reach of the keyboard, and is shown as the reader likes it', async (t) => {
    const { page, complaints } = await openPage(t, browser, gateway.url, { markdown: true })
    await page.emulateMedia({ colorScheme: 'dark', reducedMotion: 'reduce' })
    const paper = () => page.evaluate<string>('getComputedStyle(document.body).backgroundColor')
    const dark = await paper()
    await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' })
    const light = await paper()
    t.not(light, dark, 'the system decides')
    await named(page, 'Theme: system').press('Enter')
    await named(page, 'Theme: light').press('Enter')
    t.equal(await named(page, 'Theme: dark').count(), 1)
    t.equal(await paper(), dark, 'until the reader does')
    await page.reload()
    t.equal(await paper(), dark, 'and for good')

    t.equal(await page.evaluate('document.activeElement.id'), 'message', 'the page begins where one writes')
    await page.keyboard.press('Control+/')
    const keys = page.getByRole('dialog', { name: 'Keyboard shortcuts' })
    for (const what of ['Send the message', 'Search the chats', 'Begin a new chat', 'Show or hide the inspector']) {
      t.equal(await keys.getByText(what).count(), 1, what)
    }
    await page.keyboard.press('Escape')
    t.equal(await keys.isVisible(), false)
    await page.keyboard.press('Control+k')
    t.equal(await page.evaluate('document.activeElement.id'), 'search')
    await textbox(page).focus()
    await ask(page, 'By keyboard')
    t.equal(await page.evaluate('document.getAnimations().length'), 0, 'nothing moves for those who do not want it')
    await page.keyboard.press('Control+Shift+O')
    await page.getByRole('article').first().waitFor({ state: 'detached' })
    t.equal(await page.evaluate('document.activeElement.id'), 'message')
    await chats(page).focus()
    await page.keyboard.press('Tab')
    await page.keyboard.press('Enter')
    t.equal(await page.evaluate('document.activeElement.textContent'), 'Rename', 'a menu takes the focus')
    await page.keyboard.press('ArrowUp')
    t.equal(await page.evaluate('document.activeElement.textContent'), 'Delete')
    await page.keyboard.press('Escape')
    t.match(
      await page.evaluate('document.activeElement.getAttribute("aria-label")'),
      /^Actions for/,
      'and gives it back',
    )
    await page.keyboard.press('Shift+Tab')
    await page.keyboard.press('Enter')
    await lastReply(page).waitFor()
    await endOfReply(page)

    // A reply in Markdown has the words of the stored one, and none of its marks.
    const stored = (await read(page.context(), `/sessions/${sessionOf(page)}/messages`)).data[1].content
    const shown = await shownReply(page)
    // What is left of both without white space and the marks that the demo uses.
    const words = (text: string) => text.replaceAll(/\s|[*>`-]|```ts/g, '')
    t.equal(words(shown), words(stored.replaceAll('```ts', '')))
    t.notMatch(shown, /\*\*|```/)
    t.equal(await lastReply(page).locator('pre code').count(), 1)
    await named(page, 'Show replies as written').click()
    t.equal(await shownReply(page), stored, 'to the letter, when the reader wants it')
    t.same(complaints, [])
  })

  t.test(
    'the inspector tells of each event what it is and when it came, and gives a command that attaches',
    async (t) => {
      const { page, context, complaints } = await openPage(t, browser, gateway.url)
      await context.grantPermissions(['clipboard-read', 'clipboard-write'])
      await page.keyboard.press('Control+i')
      const inspector = page.getByRole('complementary', { name: 'Inspector' })
      await ask(page, 'Look inside')
      await inspector.getByText('completed').first().waitFor()
      const rows = await inspector
        .locator('tbody tr')
        .evaluateAll((all) =>
          all.map((row) =>
            [...(row as unknown as { cells: Iterable<{ textContent: string }> }).cells].map((cell) => cell.textContent),
          ),
        )
      const { data } = await read(context, `/sessions/${sessionOf(page)}/messages`)
      const run = await read(context, `/runs/${data[1].run_id}`)
      const events = rows.filter(([, , , , id]) => id !== '')
      t.same(events[0]!.slice(2, 3), ['run'])
      t.same(events.at(-1)!.slice(2, 3), ['done'])
      t.same(
        events.map(([, , , , id]) => id).toSorted((a, b) => Number(a!.slice(2)) - Number(b!.slice(2))),
        events.map(([, , , , id]) => id),
        'in order',
      )
      const times = rows.map(([ms]) => Number(ms))
      t.same(
        times.toSorted((a, b) => a - b),
        times,
      )
      const text = `${await inspector.textContent()}`
      for (const fact of [run.session_id, run.id, run.message_id, `${run.usage.output_tokens} out`, 'in the gateway']) {
        t.ok(text.includes(fact), fact)
      }
      await inspector.getByRole('button', { name: 'run', exact: true }).click()
      t.equal(
        JSON.parse(`${await inspector.getByRole('region', { name: 'Data of the event' }).textContent()}`).run_id,
        run.id,
      )

      await inspector.getByRole('button', { name: /^Copy the command/ }).click()
      await inspector.getByRole('button', { name: 'Copied' }).waitFor()
      const command = await page.evaluate<string>('navigator.clipboard.readText()')
      const attached = await fetch(/^curl -N '(.*)'$/.exec(command)?.[1] ?? '')
      t.match(await attached.text(), `"run_id":"${run.id}"`, 'anybody who has it can read this run')
      await page.keyboard.press('Control+i')
      t.equal(await inspector.isVisible(), false)
      t.same(complaints, [])
    },
  )

  t.test('on a phone nothing scrolls sideways, and all is named and has contrast, in light and dark', async (t) => {
    const { page, strayRequests, complaints } = await openPage(t, browser, gateway.url, {
      viewport: phone,
      markdown: true,
    })
    await ask(page, 'On a phone')
    await checkPage(t, page)
    const chatsButton = page.getByRole('navigation').getByRole('button', { name: 'Chats' })
    await chatsButton.click()
    await checkNames(t, page)
    await page.keyboard.press('Escape')
    t.equal(await chatsButton.getAttribute('aria-expanded'), 'false')
    await named(page, 'Inspector').click()
    t.ok(await page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'with the inspector')
    await named(page, 'Close the inspector').click()
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme })
      for (const [ink, paper] of colours) {
        const ratio = contrast(await colourOf(page, ink), await colourOf(page, paper))
        t.ok(ratio >= 4.5, `${ink} on ${paper}, ${colorScheme}: ${ratio.toFixed(2)}`)
      }
    }
    t.ok(contrast([255, 255, 255], [150, 150, 150]) < 4.5, 'the measure can tell')
    await chatsButton.click()
    await openMenu(page, 'On a phone', 'Delete')
    const notice = await page.getByText('Deleted “On a phone”.').boundingBox()
    const composer = await textbox(page).boundingBox()
    t.ok(notice!.y + notice!.height < composer!.y, 'a notice does not lie on what one writes with')
    t.same(strayRequests, [])
    t.same(complaints, [])
  })

  async function checkPage(t: Test, page: Page): Promise<void> {
    t.ok(await page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'the page')
    t.ok(await page.evaluate("document.querySelector('[role=log]').scrollWidth <= innerWidth"), 'the log')
    t.equal(await page.locator('html').getAttribute('lang'), 'en')
    t.equal(await page.getByRole('main').count(), 1)
    t.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
    t.ok(await page.locator('meta[name=viewport], meta[name=description]').count())
    await checkNames(t, page)
  }

  /** Every control has a name. Also those that are not on the screen now. */
  async function checkNames(t: Test, page: Page): Promise<void> {
    t.same(await page.evaluate(nameless), [], 'all controls have names')
  }
}

/** The gateway does what it is asked, and the page is told that it failed. */
async function loseAnswer(route: Route): Promise<void> {
  await route.fetch()
  const problem = { status: 500, code: 'internal', title: 'Lost', detail: 'Something broke.', retryable: false }
  await route.fulfill({ status: 500, contentType: 'application/problem+json', body: JSON.stringify(problem) })
}

const keepToken = (token: string) => `localStorage.setItem('verbatim.token', '${token}')`

/** `told` in the page resolves when another tab has changed what is kept, and the page has seen it. */
async function listenToTabs(page: Page): Promise<void> {
  await page.evaluate("void (window.told = new Promise((resolve) => addEventListener('storage', () => resolve())))")
}

/** Controls without a name, in the page's own words. */
const nameless = `[...document.querySelectorAll('button, input, select, textarea, a[href], [role=region], dialog')]
  .filter((element) => {
    const id = element.getAttribute('aria-labelledby')
    const names = [
      element.getAttribute('aria-label'),
      element.textContent,
      ...[...(element.labels ?? [])].map((label) => label.textContent),
      id === null ? '' : document.getElementById(id)?.textContent,
    ]
    return !names.some((name) => name?.trim())
  })
  .map((element) => element.outerHTML.slice(0, 100))`

/** Text and what is behind it, as the style sheet names them. */
const colours = [
  ['ink', 'paper'],
  ['ink', 'side'],
  ['ink', 'bubble'],
  ['ink', 'chosen'],
  ['faint', 'paper'],
  ['faint', 'side'],
  ['faint', 'raised'],
  ['faint', 'code'],
  ['faint', 'chosen'],
  ['accent', 'paper'],
  ['accent', 'accent-soft'],
  ['on-accent', 'accent'],
  ['on-accent', 'accent-strong'],
  ['bad', 'bad-paper'],
  ['bad', 'paper'],
] as const

async function colourOf(page: Page, name: string): Promise<readonly number[]> {
  const colour = await page.evaluate<string>(`{
    const probe = document.body.appendChild(document.createElement('i'))
    probe.style.color = 'var(--${name})'
    const { color } = getComputedStyle(probe)
    probe.remove()
    color
  }`)
  return (colour.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number)
}

/** As in WCAG 2.2, 1.4.3. */
function contrast(a: readonly number[], b: readonly number[]): number {
  const [light = 0, dark = 0] = [a, b].map(luminance).toSorted((one, other) => other - one)
  return (light + 0.05) / (dark + 0.05)
}

function luminance(colour: readonly number[]): number {
  const [red = 0, green = 0, blue = 0] = colour.map((value) => {
    const part = value / 255
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}
