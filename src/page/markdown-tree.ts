/**
 * Markdown tokens -> elements. What a model writes is not trusted: HTML becomes the text that it is, an image becomes a
 * link, and a link leads to http, https or mail, or is no link. A line break of the text stays one, also where Markdown
 * would fold it: so what a reader copies is what is stored, apart from the marks.
 *
 * The lexer leaves character references as they are written and says where they count; the common ones are read here.
 */
import type { MarkedToken, Token, Tokens } from './marked.js'
import { type Tree, type TreeElement, treeElement } from './tree.ts'

/** Deeper than any text is meant, and far from what a call stack holds. */
const depthMax = 40

const schemes: Readonly<Record<string, true>> = { 'http:': true, 'https:': true, 'mailto:': true }
/** The page's own headings are the first two levels. */
const headings = ['h3', 'h4', 'h5', 'h6'] as const

/** Blank lines and definitions of links are nothing to look at. */
export function isShown(token: Token): boolean {
  return token.type !== 'space' && token.type !== 'def'
}

/** @param token of the top level, and one that is shown */
export function blockElement(token: Token): TreeElement {
  const trees = block(token, 0)
  const [tree] = trees
  return trees.length === 1 && tree !== undefined && typeof tree !== 'string' ? tree : treeElement('p', trees)
}

/** @returns `url` as it may stand in a link of ours; undefined when it leads anywhere else than to the web or to mail */
export function safeUrl(url: string): string | undefined {
  const text = url.trim()
  return URL.canParse(text) && schemes[new URL(text).protocol] === true ? text : undefined
}

/** An element of the page that leads out of it. */
export const outside = { rel: 'noopener noreferrer', target: '_blank' } as const

function blocks(tokens: readonly Token[], depth: number): readonly Tree[] {
  return tokens.flatMap((token) => block(token, depth))
}

function block(generic: Token, depth: number): readonly Tree[] {
  if (depth > depthMax) return [generic.raw]
  const token = generic as MarkedToken
  switch (token.type) {
    case 'space':
    case 'def':
      return []
    case 'paragraph':
      return [treeElement('p', inline(token.tokens, depth + 1))]
    case 'heading':
      return [
        treeElement(headings[Math.min(token.depth, headings.length) - 1] ?? 'h6', inline(token.tokens, depth + 1)),
      ]
    case 'code':
      return [codeBlock(token)]
    case 'blockquote':
      return [treeElement('blockquote', blocks(token.tokens, depth + 1))]
    case 'list':
      return [list(token, depth + 1)]
    case 'table':
      return [table(token, depth + 1)]
    case 'hr':
      return [treeElement('hr')]
    case 'html':
      return [treeElement('p', [token.text.trimEnd()], { class: 'html' })]
    default:
      return inline([token], depth)
  }
}

function list(token: Tokens.List, depth: number): TreeElement {
  const items = token.items.map((item) =>
    treeElement('li', blocks(item.tokens, depth), item.task ? { class: 'task' } : {}),
  )
  if (!token.ordered) return treeElement('ul', items)
  return treeElement('ol', items, token.start === 1 || token.start === '' ? {} : { start: `${token.start}` })
}

function table(token: Tokens.Table, depth: number): TreeElement {
  const row = (cells: readonly Tokens.TableCell[], tag: 'td' | 'th') =>
    treeElement(
      'tr',
      cells.map((cell) =>
        treeElement(tag, inline(cell.tokens, depth), cell.align === null ? {} : { 'data-align': cell.align }),
      ),
    )
  const head = treeElement('thead', [row(token.header, 'th')])
  const rows = treeElement(
    'tbody',
    token.rows.map((cells) => row(cells, 'td')),
  )
  // A box that scrolls has to be within reach of the keyboard.
  return treeElement('div', [treeElement('table', [head, rows])], {
    class: 'table',
    role: 'region',
    'aria-label': 'Table',
    tabindex: '0',
  })
}

function codeBlock(token: Tokens.Code): TreeElement {
  const language = decode(/^\S*/.exec(token.lang ?? '')?.[0] ?? '').slice(0, 40)
  const code = treeElement('code', [token.text])
  return treeElement(
    'div',
    [
      treeElement('pre', [code], {
        dir: 'ltr',
        tabindex: '0',
        'aria-label': language === '' ? 'Code' : `Code, ${language}`,
        role: 'group',
      }),
      treeElement('button', [], {
        class: 'icon copy-code',
        type: 'button',
        'aria-label': 'Copy code',
        title: 'Copy code',
      }),
    ],
    { class: 'code', 'data-language': language },
  )
}

function inline(tokens: readonly Token[], depth: number): readonly Tree[] {
  return tokens.flatMap((token) => span(token, depth))
}

function span(generic: Token, depth: number): readonly Tree[] {
  if (depth > depthMax) return [generic.raw]
  const token = generic as MarkedToken
  switch (token.type) {
    case 'text':
      if (token.tokens !== undefined) return inline(token.tokens, depth + 1)
      return [token.escaped === true ? token.raw : decode(token.text)]
    case 'escape':
      return [token.text]
    case 'strong':
    case 'em':
    case 'del':
      return [treeElement(token.type, inline(token.tokens, depth + 1))]
    case 'codespan':
      return [treeElement('code', [token.text], { dir: 'ltr' })]
    case 'br':
      return ['\n']
    case 'html':
      // The one tag that means nothing but itself, and the only way to have two lines in the cell of a table.
      return /^<br\s*\/?>$/i.test(token.text) ? [treeElement('br')] : [token.raw]
    case 'link':
      return [link(token, depth + 1)].flat()
    case 'image':
      return [image(token)]
    case 'checkbox':
      return [checkbox(token)]
    default:
      return [generic.raw]
  }
}

function link(token: Tokens.Link, depth: number): TreeElement | readonly Tree[] {
  const words = inline(token.tokens, depth)
  const href = safeUrl(token.autolink === true ? token.href : decode(token.href))
  if (href === undefined) return token.autolink === true ? words : [...words, ` (${token.href})`]
  return treeElement('a', words, { href, ...outside, title: href })
}

function image(token: Tokens.Image): Tree {
  const name = decode(token.text) || 'image'
  const href = safeUrl(decode(token.href))
  if (href === undefined) return name
  return treeElement('a', [name], { href, ...outside, class: 'image', title: `Image, not loaded: ${href}` })
}

function checkbox(token: Tokens.Checkbox): Tree {
  return treeElement('input', [], {
    type: 'checkbox',
    disabled: '',
    'aria-label': token.checked ? 'Done' : 'Not done',
    ...(token.checked ? { checked: '' } : {}),
  })
}

/** Those that people write; an unknown one stays as it is written. */
const references: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
  nbsp: '\u00a0',
  copy: '©',
  reg: '®',
  trade: '™',
  hellip: '…',
  mdash: '—',
  ndash: '–',
  lsquo: '‘',
  rsquo: '’',
  ldquo: '“',
  rdquo: '”',
  laquo: '«',
  raquo: '»',
  bull: '•',
  middot: '·',
  deg: '°',
  plusmn: '±',
  times: '×',
  divide: '÷',
  ne: '≠',
  le: '≤',
  ge: '≥',
  larr: '←',
  rarr: '→',
  uarr: '↑',
  darr: '↓',
  harr: '↔',
  euro: '€',
  pound: '£',
  yen: '¥',
  cent: '¢',
  sect: '§',
  para: '¶',
  infin: '∞',
  check: '✓',
  emsp: '\u2003',
  ensp: '\u2002',
  thinsp: '\u2009',
  shy: '\u00ad',
  zwnj: '\u200c',
  zwj: '\u200d',
}

function decode(text: string): string {
  if (!text.includes('&')) return text
  return text.replaceAll(/&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([A-Za-z]\w{1,31}));/g, (whole, decimal, hex, name) => {
    if (name !== undefined) return Object.hasOwn(references, name) ? (references[name] ?? whole) : whole
    const point = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal)
    const bad = point === 0 || point > 0x10_ffff || (point >= 0xd800 && point <= 0xdfff)
    return bad ? '\ufffd' : String.fromCodePoint(point)
  })
}
