/**
 * What the page makes of Markdown, in a real browser: its own modules, imported into its own document under its own
 * policy, and no gateway. What a model writes is not trusted, so most of this is about what must not come of it.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import Fastify from 'fastify'
import t from 'tap'
import { createRandom } from '../../scripts/fake-upstream.ts'
import { page as pagePlugin } from '../../src/http/page.ts'
import { openChromium, openPage } from './chromium.ts'

/** What a text has become: its elements with the attributes that matter, and what can be selected of it. */
interface Made {
  readonly html: string
  readonly text: string
  readonly tags: readonly string[]
  readonly attributes: readonly string[]
  readonly hrefs: readonly string[]
}

interface Cost {
  readonly blocks: number
  /** Units that the lexer was given. */
  readonly streamed: { readonly total: number; readonly max: number; readonly calls: number }
  readonly history: { readonly max: number }
}

/** In the page's own words: the compiler of the tests knows no document. */
const makeInPage = `async (texts) => {
  const { createMarkdownView } = await import('/page/markdown.ts')
  return texts.map((pieces) => {
    const root = document.querySelector('[role=log]').appendChild(document.createElement('div'))
    const view = createMarkdownView(root)
    let text = ''
    // A frame that has not shown all is followed by another one, and meanwhile text comes.
    for (const piece of pieces) view.show((text += piece))
    while (!view.show(text));
    const all = [...root.querySelectorAll('*')]
    root.remove()
    return {
      html: [...root.children].map((box) => box.innerHTML).join(''),
      text: root.textContent,
      tags: [...new Set(all.map(({ localName }) => localName))],
      attributes: [...new Set(all.flatMap((element) => element.getAttributeNames()))],
      hrefs: all.flatMap((element) => element.getAttribute('href') ?? []),
    }
  })
}`

const measureInPage = `async (text, pieceUnits) => {
  const { Lexer } = await import('/page/marked.js')
  const { createMarkdownView } = await import('/page/markdown.ts')
  const { lex } = Lexer.prototype
  const units = []
  Lexer.prototype.lex = function (source) {
    units.push(source.length)
    return lex.call(this, source)
  }
  const root = document.createElement('div')
  const view = createMarkdownView(root)
  for (let end = pieceUnits; end < text.length + pieceUnits; end += pieceUnits) view.show(text.slice(0, end))
  while (!view.show(text));
  const streamed = { total: units.reduce((sum, next) => sum + next, 0), max: Math.max(...units), calls: units.length }
  units.length = 0
  const history = createMarkdownView(document.createElement('div'))
  while (!history.show(text));
  Lexer.prototype.lex = lex
  return { streamed, history: { max: Math.max(...units) }, blocks: root.querySelectorAll('.blocks > *').length }
}`

const allowedTags = [
  ...['a', 'blockquote', 'br', 'button', 'code', 'del', 'div', 'em', 'h3', 'h4', 'h5', 'h6', 'hr', 'input', 'li', 'ol'],
  ...['p', 'pre', 'strong', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul'],
]

/** Markdown -> what of it can be selected, and where its links lead. */
const unsafe: readonly (readonly [name: string, markdown: string, text: string, hrefs?: readonly string[]])[] = [
  ['a script', '<script>document.title="bad"</script>', '<script>document.title="bad"</script>'],
  ['a script in a sentence', 'a <script>bad()</script> b', 'a <script>bad()</script> b'],
  ['an element with a handler', '<img src=x onerror="bad()">', '<img src=x onerror="bad()">'],
  ['a block of HTML', '<div onclick="bad()">\nx **y**\n</div>', '<div onclick="bad()">\nx **y**\n</div>'],
  [
    'an iframe',
    '<iframe srcdoc="<script>bad()</script>"></iframe>',
    '<iframe srcdoc="<script>bad()</script>"></iframe>',
  ],
  ['a style', '<style>* { display: none }</style>', '<style>* { display: none }</style>'],
  ['a comment', '<!-- x -->', '<!-- x -->'],
  ['a link of HTML', '<a href="javascript:bad()">x</a>', '<a href="javascript:bad()">x</a>'],
  ['a script as a link', '[x](javascript:bad())', 'x (javascript:bad())'],
  ['the same in other letters', '[x](JaVaScRiPt:bad())', 'x (JaVaScRiPt:bad())'],
  ['the same with references', '[x](javascript&#58;bad())', 'x (javascript&#58;bad())'],
  ['the same with a name', '[x](javascript&colon;bad())', 'x (javascript&colon;bad())'],
  ['the same with white space', '[x](<java\tscript:bad()>)', 'x (java\tscript:bad())'],
  ['the same as an address', '<javascript:bad()>', 'javascript:bad()'],
  ['the same by a definition', '[x][y]\n\n[y]: javascript:bad()', 'x (javascript:bad())'],
  ['HTML as data', '[x](data:text/html,<script>bad()</script>)', 'x (data:text/html,<script>bad()</script>)'],
  ['a script of another kind', '[x](vbscript:bad)', 'x (vbscript:bad)'],
  ['a file', '[x](file:///etc/passwd)', 'x (file:///etc/passwd)'],
  ['a blob', '[x](blob:http://127.0.0.1/1)', 'x (blob:http://127.0.0.1/1)'],
  ['a path of this site', '[x](/api/v1/me)', 'x (/api/v1/me)'],
  ['a site without a scheme', '[x](//example.com)', 'x (//example.com)'],
  ['a link to the web', '[x](https://example.com/a?b&amp;c "t")', 'x', ['https://example.com/a?b&c']],
  ['an address of the web', 'see www.example.com', 'see www.example.com', ['http://www.example.com']],
  ['an address of mail', '<a@example.com>', 'a@example.com', ['mailto:a@example.com']],
  ['a picture', '![a cat](https://example.com/cat.png)', 'a cat', ['https://example.com/cat.png']],
  ['a picture that is a script', '![a cat](javascript:bad())', 'a cat'],
  ['a picture as data', '![a cat](data:image/svg+xml;base64,PHN2Zy8+)', 'a cat'],
  ['a picture in a link', '[![a](https://a.example)](javascript:bad())', 'a (javascript:bad())', ['https://a.example']],
  [
    'references',
    '&lt;b&gt; &amp;amp; &#60;i&#62; &nbsp;&nope; &#0; &#xD800;',
    '<b> &amp; <i> \u00a0&nope; \ufffd \ufffd',
  ],
  ['HTML in code', '`<b>&amp;</b>`', '<b>&amp;</b>'],
  ['HTML in a block of code', '```html\n<script>bad()</script>\n```', '<script>bad()</script>'],
  ['a language that is markup', '```"><img onerror=bad()>\nx\n```', 'x'],
  ['a tag in a table', '| a |\n|---|\n| x<br>y<img src=x> |', 'axy<img src=x>'],
  ['a line of 100 000 letters', 'w'.repeat(100_000), 'w'.repeat(100_000)],
  ['three thousand quotes in each other', `${'>'.repeat(3000)}x`, `${'>'.repeat(3000)}x`],
]

/** Everything that blocks can do to each other, for cuts at any place. */
const corpus = [
  '# Head *ing*\n\nA paragraph with **bold**, *em*, `code`, ~~del~~ and [a link](https://example.com).\nIts second line.',
  'Setext\n===\n\nOther\n---\n\n- a\n- b\n\n  c\n\n  1. d\n  2. e\n\n- [x] done\n- [ ] open',
  '7. seven\n8. eight\n\n   ```js\n   let a = 1\n   ```\n\n9. nine',
  '> quote\n> goes on\nlazily\n\n> another\n> - with a list\n>\n> ```\n> code\n> ```',
  '| a | b |\n|:--|--:|\n| 1 | `x` |\n| 2 | **y** |\n\nno | table',
  '```ts\nconst a = "**no bold**"\n\n\n- no list\n```\n\n    indented\n\n    more\n\n~~~\ntilde ``` inside\n~~~',
  'see [the docs][docs] and [other]\n\ntext between\n\n* * *\n\n[docs]: https://example.com/docs\n\n[other]: https://example.com/other "t"\n\nend',
  '<div>\nhtml\n</div>\n\nline one  \nline two\\\nline three\r\nline four\r\n\r\n* star\n+ plus\n- minus',
  'العربية\n\n日本語 👩‍👩‍👧 **太字**\n\n\n\n\nlast words',
] as const

/** Each letter for itself, and the rest at random. */
const cutsOfEach = 4

t.setTimeout(60_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  const app = Fastify({ forceCloseConnections: true })
  await app.register(pagePlugin)
  app.get('/api/v1/sessions', () => ({ data: [], next_cursor: null }))
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  const { page, complaints, strayRequests } = await openPage(t, browser, url, { markdown: true })

  /** Shows each list of pieces as one text that grows by them. */
  function make(texts: readonly (readonly string[])[]): Promise<readonly Made[]> {
    return page.evaluate(`(${makeInPage})(${JSON.stringify(texts)})`)
  }

  t.test(
    'a browser gets all modules that the page imports, as JavaScript, and is told of them beforehand',
    async (t) => {
      const html = await (await fetch(url)).text()
      const announced = [...html.matchAll(/rel="modulepreload" href="([^"]+)"/g)].map(([, path]) => `${path}`)
      const reached = new Set<string>()
      const open = ['/page/main.ts']
      for (let path = open.pop(); path !== undefined; path = open.pop()) {
        if (reached.has(path)) continue
        reached.add(path)
        const answer = await fetch(url + path)
        t.match(answer.headers.get('content-type'), /javascript/, path)
        const text = await answer.text()
        for (const [, from] of text.matchAll(/^(?:import|export|\}) [^'\n]*from '(\.[^']+)'/gm)) {
          open.push(new URL(`${from}`, url + path).pathname)
        }
      }
      reached.delete('/page/main.ts')
      t.same(announced.toSorted(), [...reached].toSorted())
      t.ok(reached.has('/page/marked.js'))
    },
  )

  t.test('to serve them, the gateway prints nothing', async (t) => {
    const program = `
      import Fastify from 'fastify'
      import { page } from './src/http/page.ts'
      const app = Fastify()
      await app.register(page)
      console.log((await app.inject('/page/main.ts')).statusCode)
      await app.close()`
    const cwd = new URL('../..', import.meta.url)
    const { stdout, stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program], {
      cwd,
    })
    t.equal(stdout, '200\n')
    t.equal(stderr, '', 'also no warning that what takes out the types is experimental')
  })

  t.test('nothing that a model writes becomes more than text and harmless elements', async (t) => {
    const made = await make(unsafe.map(([, markdown]) => [markdown]))
    for (const [index, [name, , text, hrefs = []]] of unsafe.entries()) {
      const { tags, attributes, ...rest } = made[index]!
      t.equal(rest.text, text, name)
      t.same(rest.hrefs, hrefs, `${name}: links`)
      t.same(
        tags.filter((tag) => !allowedTags.includes(tag)),
        [],
        `${name}: elements`,
      )
      t.same(
        attributes.filter((attribute) => /^on|style|src|srcset|formaction|action/.test(attribute)),
        [],
        `${name}: attributes`,
      )
    }
    t.equal(await page.title(), 'Verbatim', 'nothing has run')
    t.same(complaints, [], 'and nothing was asked of the policy')
    t.same(strayRequests, [], 'no picture was loaded')
  })

  t.test('links leave the page without taking it along, and say where they lead', async (t) => {
    const [made] = await make([['[x](https://example.com) ![y](https://example.com/y.png)']])
    const links = made!.html.match(/<a [^>]*>/g) ?? []
    t.equal(links.length, 2)
    for (const link of links) {
      t.match(link, 'rel="noopener noreferrer"')
      t.match(link, 'target="_blank"')
      t.match(link, /title="[^"]*https:\/\/example\.com/)
    }
  })

  t.test('blocks come out as what they are, and lines as the text has them', async (t) => {
    const [made] = await make([[corpus.join('\n\n')]])
    for (const part of [
      '<h3>Head <em>ing</em></h3>',
      '<a href="https://example.com" rel="noopener noreferrer" target="_blank" title="https://example.com">a link</a>.\nIts second line.',
      '<li class="task"><p><input type="checkbox" disabled="" aria-label="Done" checked="">done</p></li>',
      '<ol start="7">',
      '<div class="code" data-language="js"><pre dir="ltr" tabindex="0"',
      '<blockquote><p>quote\ngoes on\nlazily</p></blockquote>',
      '<div class="table" role="region" aria-label="Table" tabindex="0"><table>',
      '<td data-align="right"><code dir="ltr">x</code></td>',
      'const a = "**no bold**"\n\n\n- no list</code>',
      'title="https://example.com/docs">the docs</a>',
      'line one\nline two\nline three\nline four',
    ]) {
      t.ok(made!.html.includes(part), part)
    }
  })

  t.test('a text in pieces, cut anywhere, ends as the same elements as the text at once', async (t) => {
    const random = createRandom(6)
    const texts = [...corpus, corpus.join('\n\n'), corpus.toReversed().join('\n\n')]
    const whole = await make(texts.map((text) => [text]))
    const pieces = texts.flatMap((text) => [
      [...text],
      ...Array.from({ length: cutsOfEach - 1 }, () => cutAtRandom(text, random)),
    ])
    const made = await make(pieces)
    for (const [index, { html }] of made.entries()) {
      const { html: expected } = whole[Math.floor(index / cutsOfEach)]!
      if (html !== expected) t.equal(html, expected, JSON.stringify(pieces[index]))
    }
    t.equal(made.length, texts.length * cutsOfEach)
  })

  t.test('however long a reply is, a piece of it costs what its last blocks cost', async (t) => {
    const block =
      'Some *words* of a paragraph with `code`.\n\n- item one **bold**\n- item two\n\n```ts\nconst a = 1\n```\n\n'
    const text = block.repeat(Math.ceil(200_000 / block.length))
    const cost: Cost = await page.evaluate(`(${measureInPage})(${JSON.stringify(text)}, 100)`)
    t.equal(cost.blocks, 3 * Math.ceil(200_000 / block.length))
    t.ok(cost.streamed.max < 1000, `${cost.streamed.max} units at once, while it streams`)
    t.ok(cost.streamed.total / cost.streamed.calls < 500, 'and fewer than 500 on average')
    t.ok(cost.history.max <= 4 * 1024, 'a stored reply is read in slices too')
  })

  t.test('a block without end is cut where a line ends, and nothing of it is missing', async (t) => {
    const list = '- an item with **bold** and `code`\n'.repeat(3000)
    const code = `\`\`\`\n${'const a = 1\n'.repeat(9000)}\`\`\`\n\nend`
    const [item, line] = await make([[list], [code]])
    t.equal(item!.html.split('<li>').length - 1, 3000)
    t.equal(item!.text, 'an item with bold and code'.repeat(3000))
    t.equal(line!.text, `${'const a = 1\n'.repeat(9000).trimEnd()}end`)
    t.equal(line!.html.split('<pre').length - 1, 1, 'code stays one block')
  })
}

function cutAtRandom(text: string, random: () => number): string[] {
  const pieces: string[] = []
  for (let at = 0; at < text.length; ) {
    const units = 1 + Math.floor(random() * 12)
    pieces.push(text.slice(at, at + units))
    at += units
  }
  return pieces
}
