/**
 * A reply's text on the screen, as Markdown, while it grows. A block is settled when two more have begun behind it: then no
 * text to come can change it, and it is neither parsed nor compared again. So a frame costs what the last blocks cost,
 * however long the reply is.
 *
 * A text is taken in slices, so that no piece of work is long: a slice that is one block alone, a list of hundreds of
 * lines, is cut at the end of a line and goes on as another one. A block of code is never cut, because it costs nothing.
 *
 * A link may be defined behind its use (`[words][name]`, and far below `[name]: url`). Settled blocks that could wait for
 * a definition are remembered, and made again when it comes.
 */

import { blockElement } from './markdown-tree.ts'
import { Lexer, type Token, type TokensList } from './marked.js'
import { patch, type Tree } from './tree.ts'

/** About 20 ms of a slow machine. */
const sliceUnitsMax = 16 * 1024
/** Blocks that may still change: text to come can join two of them, as with the items of a list. */
const openBlocks = 2
/** Of a screen's time, how much one call may take before it leaves the rest to the next frame. */
const drawMsMax = 12
/** Blocks that wait for the definition of a link. Who writes more of them gets the older ones as they are written. */
const waitingMax = 200

type Links = TokensList['links']

export interface MarkdownView {
  /** @returns whether all of `text` is on the screen; when not, call it again in the next frame */
  show(text: string): boolean
}

export function createMarkdownView(root: HTMLElement): MarkdownView {
  /** The text that the elements come from, with LF as the only end of a line. */
  let source = ''
  let settledUnits = 0
  /** The last element that no longer changes. */
  let settled: Element | null = null
  /** How far into `source` the elements go. */
  let shownUnits = 0
  /** From definitions that are settled. */
  let links: Links = {}
  /** And from those that may still grow: what settled blocks have been made with. */
  let known: Links = {}
  let waiting: { readonly raw: string; readonly element: Element }[] = []

  function show(text: string): boolean {
    const next = text.includes('\r') ? text.replaceAll(/\r\n?/g, '\n') : text
    if (next === source && shownUnits === source.length) return true
    if (!next.startsWith(source)) startOver()
    source = next
    const beganAt = performance.now()
    do {
      if (!showSlice()) return true
    } while (performance.now() - beganAt < drawMsMax)
    return false
  }

  function startOver(): void {
    root.replaceChildren()
    settledUnits = 0
    settled = null
    links = {}
    known = {}
    waiting = []
  }

  /** Shows one slice behind what is settled. @returns whether there is text behind it */
  function showSlice(): boolean {
    const end = endOfSlice()
    const slice = source.slice(settledUnits, end)
    const { tokens, defined } = lex(slice, links)
    const shown = tokens.flatMap((token) => {
      const tree = blockElement(token)
      return tree === undefined ? [] : [{ token, tree }]
    })
    patch(
      root,
      shown.map(({ tree }) => tree as Tree),
      settled === null ? root.firstChild : settled.nextSibling,
    )
    shownUnits = end
    settle(tokens, shown.length - openBlocks)
    learn(defined)
    if (end === source.length) return false
    // Nothing settled in a full slice: it is one block, or two. What is shown of it stays as it is.
    if (settledUnits + slice.length === end) cut(slice, end)
    return true
  }

  function endOfSlice(): number {
    const end = settledUnits + sliceUnitsMax
    if (end >= source.length) return source.length
    const fence = /^ {0,3}(`{3,}|~{3,})/.exec(source.slice(settledUnits, settledUnits + 80).trimStart())?.[1]
    if (fence === undefined) return end
    const close = source.indexOf(`\n${fence}`, settledUnits + fence.length)
    const lineEnd = close < 0 ? -1 : source.indexOf('\n', close + 1)
    if (lineEnd < 0) return source.length
    // What comes behind the block settles it.
    return lineEnd < end ? end : Math.min(lineEnd + sliceUnitsMax, source.length)
  }

  /** @param count of the elements that are shown behind what was settled */
  function settle(tokens: readonly Token[], count: number): void {
    let left = count
    for (const token of tokens) {
      const isShown = blockElement(token) !== undefined
      if (isShown && left-- <= 0) return
      if (!source.startsWith(token.raw, settledUnits)) return
      settledUnits += token.raw.length
      if (token.type === 'def') links[token.tag] ??= { href: token.href, title: token.title }
      if (!isShown) continue
      settled = settled === null ? root.firstElementChild : settled.nextElementSibling
      if (settled !== null && /\[[^\]]+\]/.test(token.raw)) {
        waiting.push({ raw: token.raw, element: settled })
        if (waiting.length > waitingMax) waiting.shift()
      }
    }
  }

  function cut(slice: string, end: number): void {
    const lineEnd = slice.lastIndexOf('\n')
    settledUnits = lineEnd > 0 ? settledUnits + lineEnd + 1 : end
    shownUnits = settledUnits
    settled = root.lastElementChild
  }

  function learn(defined: Links): void {
    const changed = [...new Set([...Object.keys(defined), ...Object.keys(known)])].filter(
      (name) => defined[name]?.href !== known[name]?.href || defined[name]?.title !== known[name]?.title,
    )
    known = { ...defined }
    if (changed.length === 0) return
    for (const { raw, element } of waiting) {
      const words = raw.toLowerCase().replaceAll(/\s+/g, ' ')
      if (!changed.some((name) => words.includes(`[${name}]`))) continue
      const [tree] = lex(raw, known).tokens.flatMap((token) => blockElement(token) ?? [])
      if (tree !== undefined && tree.tag === element.localName) patch(element, tree.children)
    }
  }

  function lex(text: string, links: Links): { readonly tokens: readonly Token[]; readonly defined: Links } {
    const lexer = new Lexer({ gfm: true })
    Object.assign(lexer.tokens.links, links)
    try {
      return { tokens: lexer.lex(text), defined: lexer.tokens.links }
    } catch {
      // Thousands of nested quotes are more than its recursion holds: the text is shown as it is written.
      return { tokens: [{ type: 'html', raw: text, text, block: true, pre: false }], defined: links }
    }
  }

  return { show }
}
