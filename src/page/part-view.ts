/**
 * One part of a message on the screen: text in the open, as Markdown or as it is written; reasoning and calls of tools
 * folded; a source or a file as a link, which is fetched only when somebody follows it.
 */
import type { Part } from '../client/index.ts'
import { create, setText } from './dom.ts'
import { createMarkdownView, type MarkdownView } from './markdown.ts'
import { outside, safeUrl } from './markdown-tree.ts'
import { showText } from './tree.ts'

/** Of the line that tells what the model is thinking about. */
const hintUnitsMax = 120
/** Files that the model has made and that a browser shows without running anything. */
const pictures = /^data:image\/(png|jpeg|gif|webp);base64,/
const downloads = /^data:/

export interface PartState {
  /** More of it may come. */
  readonly open: boolean
  readonly asWritten: boolean
}

export interface PartView {
  readonly kind: Part['kind']
  readonly root: HTMLElement
  /** @returns whether all of it is on the screen; when not, call it again in the next frame */
  show(part: Part, state: PartState): boolean
}

/**
 * A message is shown in each frame in which one of its parts grows. What was shown whole and has not changed is left as it
 * is: a part that changes is another object.
 *
 * @param markdown whether its text is Markdown: what people write is not
 */
export function createPartView(kind: Part['kind'], markdown: boolean): PartView {
  const view = viewOf(kind, markdown)
  let shown: Part | undefined
  let as: PartState | undefined
  return {
    kind,
    root: view.root,
    show(part, state) {
      if (part === shown && state.open === as?.open && state.asWritten === as.asWritten) return true
      const whole = view.show(part, state)
      shown = whole ? part : undefined
      as = state
      return whole
    },
  }
}

function viewOf(kind: Part['kind'], markdown: boolean): PartView {
  switch (kind) {
    case 'text':
      return { kind, ...createWords(markdown) }
    case 'reasoning':
      return createReasoningView()
    case 'tool_call':
      return createToolView()
    default:
      return createReferenceView(kind)
  }
}

function createWords(markdown: boolean): Pick<PartView, 'root' | 'show'> {
  const root = create('div', { class: 'words' })
  const text = new Text()
  let view: MarkdownView | undefined
  root.dir = 'auto'

  return {
    root,
    show(part, { asWritten }) {
      const rendered = markdown && !asWritten
      if (rendered !== (view !== undefined) || !root.hasChildNodes()) {
        root.classList.toggle('markdown', rendered)
        root.replaceChildren(...(rendered ? [] : [text]))
        view = rendered ? createMarkdownView(root) : undefined
      }
      if (view !== undefined) return view.show(part.text)
      showText(text, part.text)
      return true
    },
  }
}

function createFold(kind: Part['kind']) {
  const root = create('details', { class: `fold ${kind}` })
  const name = create('span', { class: 'name' })
  const hint = create('span', { class: 'hint' })
  // It changes with every word, and says nothing that is not in the fold.
  hint.setAttribute('aria-hidden', 'true')
  root.append(create('summary', {}, name, hint))
  return { root, name, hint }
}

function createReasoningView(): PartView {
  const { root, name, hint } = createFold('reasoning')
  const words = createWords(true)
  root.append(words.root)
  setText(name, 'Reasoning')
  return {
    kind: 'reasoning',
    root,
    show(part, state) {
      root.classList.toggle('live', state.open)
      setText(hint, state.open ? lastLine(part.text) : '')
      if (part.redacted === true && part.text === '') setText(hint, 'kept secret by the provider')
      return words.show(part, state)
    },
  }
}

function lastLine(text: string): string {
  const line =
    text
      .slice(-4 * hintUnitsMax)
      .trimEnd()
      .split('\n')
      .at(-1) ?? ''
  return line.replaceAll(/[*_`#>]/g, '').slice(-hintUnitsMax)
}

function createToolView(): PartView {
  const { root, name, hint } = createFold('tool_call')
  const boxes = new Map<string, HTMLElement>()

  function showBox(title: string, text: string | undefined): void {
    const there = boxes.get(title)
    if (text !== undefined && there !== undefined) setText(there, text)
    if (text === undefined || there !== undefined) return
    const box = create('pre', { class: 'words', text })
    box.dir = 'auto'
    box.tabIndex = 0
    box.setAttribute('aria-label', title)
    box.setAttribute('role', 'group')
    boxes.set(title, box)
    root.append(create('p', { class: 'label', text: title }), box)
  }

  return {
    kind: 'tool_call',
    root,
    show(part, { open }) {
      const answered = part.output !== undefined || part.error !== undefined
      setText(name, `Tool: ${part.name ?? ''}`)
      root.classList.toggle('live', open && !answered)
      root.classList.toggle('bad', part.error !== undefined)
      setText(hint, part.error === undefined ? (answered ? 'answered' : open ? 'running' : '') : 'failed')
      // Of a message of role `tool` there is only the answer.
      if (part.input !== undefined || part.text !== '')
        showBox('Input', part.input === undefined ? part.text : pretty(part.input))
      showBox('Output', part.output === undefined ? undefined : pretty(part.output))
      showBox('Error', part.error === undefined ? undefined : `${part.error.code}: ${part.error.message}`)
      return true
    },
  }
}

function pretty(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value, null, 2)
}

function createReferenceView(kind: Part['kind']): PartView {
  const root = create('a', { class: kind })
  root.dir = 'auto'
  root.rel = outside.rel
  root.target = outside.target
  return {
    kind,
    root,
    show({ url = '', title, media_type }) {
      const href = kind === 'file' && downloads.test(url) ? url : safeUrl(url)
      const name = title ?? media_type ?? (downloads.test(url) ? 'data' : url)
      if (href !== undefined) root.href = href
      if (kind === 'file') root.download = `file.${(media_type ?? '').split('/').at(-1)}`
      if (kind === 'file' && pictures.test(url)) {
        if (root.querySelector('img') === null) {
          const picture = create('img')
          picture.src = url
          picture.alt = `Picture by the model (${name})`
          root.replaceChildren(picture)
        }
      } else setText(root, `${kind === 'file' ? 'File' : 'Source'}: ${name}`)
      return true
    },
  }
}
