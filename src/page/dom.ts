/** Elements: those that are in the page, those that are made, and the order they stand in. */

/** @throws Error when the page is not the one that this script was written for */
export function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id)
  if (!(found instanceof type)) throw new Error(`The page has no ${type.name} #${id}`)
  return found
}

export interface Looks {
  readonly class?: string
  readonly text?: string
}

export function create<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  looks: Looks = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag)
  if (looks.class !== undefined) made.className = looks.class
  if (looks.text !== undefined) made.textContent = looks.text
  made.append(...children)
  return made
}

/** A button with a picture, which is made by the style sheet, and a name. */
export function iconButton(icon: string, name: string, onClick: () => void): HTMLButtonElement {
  const made = create('button', { class: `icon ${icon}` })
  made.type = 'button'
  nameButton(made, name)
  made.addEventListener('click', onClick)
  return made
}

export function nameButton(button: HTMLButtonElement, name: string): void {
  button.setAttribute('aria-label', name)
  button.title = name
}

export function textButton(text: string, look: 'quiet' | 'main', onClick: () => void): HTMLButtonElement {
  const made = create('button', { class: look, text })
  made.type = 'button'
  made.addEventListener('click', onClick)
  return made
}

/** Makes `elements` the children of `parent`, moving none that is in place: a move would take the focus. */
export function arrange(parent: Element, elements: readonly Element[]): void {
  let next = parent.firstElementChild
  for (const child of elements) {
    if (child === next) next = next.nextElementSibling
    else parent.insertBefore(child, next)
  }
  while (next !== null) {
    const rest = next.nextElementSibling
    next.remove()
    next = rest
  }
}

/** Sets the text of an element whose only child is text, when it is another one: what does not change is not read out. */
export function setText(node: Element, text: string): void {
  if (node.textContent !== text) node.textContent = text
}

/** Puts `text` on the clipboard. @returns whether it is there */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    return copyBySelection(text) // no permission, or plain http from another machine, where there is no clipboard
  }
}

function copyBySelection(text: string): boolean {
  const active = document.activeElement
  const box = create('textarea', { class: 'unseen' })
  box.value = text
  // Inside a dialog that is open, nothing outside of it can be selected.
  ;(document.querySelector('dialog[open]') ?? document.body).append(box)
  box.select()
  const copied = document.execCommand('copy')
  box.remove()
  if (active instanceof HTMLElement) active.focus({ preventScroll: true })
  return copied
}

/** Saves what is in `blob` as a file of the reader's. */
export function saveFile(blob: Blob, name: string): void {
  const link = create('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  // The browser has taken it over by the next turn.
  setTimeout(() => URL.revokeObjectURL(link.href))
}
