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

import { create } from './dom.ts'
import { blockElement, isShown } from './markdown-tree.ts'
import { Lexer, type Token, type TokensList } from './marked.js'
import { patch, type Tree } from './tree.ts'

/** Some milliseconds of a slow machine. */
const sliceUnitsFirst = 4 * 1024
/** For a block that does not fit into that: a table has to be read from its head to its end. */
const sliceUnitsMax = 32 * 1024
/** Blocks that may still change: text to come can join two of them, as with the items of a list. */
const openBlocks = 2
/** Blocks share a box, and a box that is off the screen costs nothing: the style sheet says so. */
const blocksOfBox = 40
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
  /** The last element of the box that no longer changes. */
  let settled: Element | null = null
  let settledInBox = 0
  /** The box that is being filled. */
  let box = openBox()
  /** How far into `source` the elements go. */
  let shownUnits = 0
  /** From definitions that are settled. */
  let links: Links = {}
  /** And from those that may still grow: what settled blocks have been made with. */
  let known: Links = {}
  let sliceUnits = sliceUnitsFirst
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

  function openBox(): HTMLElement {
    settled = null
    settledInBox = 0
    return root.appendChild(create('div', { class: 'blocks' }))
  }

  function startOver(): void {
    root.replaceChildren()
    box = openBox()
    settledUnits = 0
    sliceUnits = sliceUnitsFirst
    links = {}
    known = {}
    waiting = []
  }

  /** Shows one slice behind what is settled. @returns whether there is text behind it */
  function showSlice(): boolean {
    const end = endOfSlice()
    const slice = source.slice(settledUnits, end)
    const { tokens, defined } = lex(slice, links)
    const shown = tokens.filter(isShown)
    showFrom(settled, shown.map(blockElement))
    shownUnits = end
    settle(tokens, shown.length - openBlocks)
    learn(defined)
    const nothingSettled = settledUnits + slice.length === end
    if (settledInBox >= blocksOfBox) {
      // What may still change goes on in the next box.
      showFrom(settled, [])
      box = openBox()
      shownUnits = settledUnits
      return true
    }
    if (end === source.length) return false
    // A full slice that is one block, or two.
    if (!nothingSettled) sliceUnits = sliceUnitsFirst
    else if (sliceUnits < sliceUnitsMax) sliceUnits *= 2
    else cut(slice)
    return true
  }

  function showFrom(last: Element | null, trees: readonly Tree[]): void {
    patch(box, trees, last === null ? box.firstChild : last.nextSibling)
  }

  function endOfSlice(): number {
    const end = settledUnits + sliceUnits
    if (end >= source.length) return source.length
    const fence = /^ {0,3}(`{3,}|~{3,})/.exec(source.slice(settledUnits, settledUnits + 80).trimStart())?.[1]
    if (fence === undefined) return end
    const close = source.indexOf(`\n${fence}`, settledUnits + fence.length)
    const lineEnd = close < 0 ? -1 : source.indexOf('\n', close + 1)
    if (lineEnd < 0) return source.length
    // What comes behind the block settles it.
    return lineEnd < end ? end : Math.min(lineEnd + sliceUnits, source.length)
  }

  /** @param count of the elements that are shown behind what was settled */
  function settle(tokens: readonly Token[], count: number): void {
    let left = count
    for (const token of tokens) {
      if (isShown(token) && (left-- <= 0 || settledInBox === blocksOfBox)) return
      if (!source.startsWith(token.raw, settledUnits)) return
      settledUnits += token.raw.length
      if (token.type === 'def') links[token.tag] ??= { href: token.href, title: token.title }
      if (!isShown(token)) continue
      settled = settled === null ? box.firstElementChild : settled.nextElementSibling
      settledInBox += 1
      if (settled !== null && /\[[^\]]+\]/.test(token.raw)) {
        waiting.push({ raw: token.raw, element: settled })
        if (waiting.length > waitingMax) waiting.shift()
      }
    }
  }

  /** The slice, up to the end of its last line, stays as it is, and what comes is read as if it began there. */
  function cut(slice: string): void {
    const kept = slice.slice(0, slice.lastIndexOf('\n') + 1) || slice
    showFrom(settled, lex(kept, links).tokens.filter(isShown).map(blockElement))
    settledUnits += kept.length
    shownUnits = settledUnits
    settled = box.lastElementChild
    settledInBox = box.childElementCount
    sliceUnits = sliceUnitsFirst
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
      const [tree] = lex(raw, known).tokens.filter(isShown).map(blockElement)
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
