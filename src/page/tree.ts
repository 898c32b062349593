/**
 * A small description of elements, and the way from it to the document: elements that are there and fit stay, with the
 * selection and the focus in them, and text that grows is appended to. Nothing is ever parsed as HTML, and only the tags
 * and attributes of the types below can come into being.
 */

export type Tag =
  | 'a'
  | 'blockquote'
  | 'br'
  | 'button'
  | 'code'
  | 'del'
  | 'div'
  | 'em'
  | 'h3'
  | 'h4'
  | 'h5'
  | 'h6'
  | 'hr'
  | 'input'
  | 'li'
  | 'ol'
  | 'p'
  | 'pre'
  | 'strong'
  | 'table'
  | 'tbody'
  | 'td'
  | 'th'
  | 'thead'
  | 'tr'
  | 'ul'

export type Attribute =
  | 'aria-label'
  | 'checked'
  | 'class'
  | 'data-align'
  | 'data-language'
  | 'dir'
  | 'disabled'
  | 'href'
  | 'rel'
  | 'role'
  | 'start'
  | 'tabindex'
  | 'target'
  | 'title'
  | 'type'

export interface TreeElement {
  readonly tag: Tag
  readonly attributes: Readonly<Partial<Record<Attribute, string>>>
  readonly children: readonly Tree[]
}

/** A string is text. */
export type Tree = string | TreeElement

export function treeElement(
  tag: Tag,
  children: readonly Tree[] = [],
  attributes: TreeElement['attributes'] = {},
): TreeElement {
  return { tag, attributes, children }
}

/**
 * Makes what is in `parent`, from the child `first` on, equal to `trees`.
 * @param first absent: from the first; null: behind the last
 */
export function patch(parent: Element, trees: readonly Tree[], first: ChildNode | null = parent.firstChild): void {
  let node = first
  for (const tree of trees) {
    if (node === null) {
      parent.append(make(tree))
      continue
    }
    const old: ChildNode = node
    node = old.nextSibling
    if (fits(old, tree)) update(old, tree)
    else old.replaceWith(make(tree))
  }
  while (node !== null) {
    const rest = node.nextSibling
    node.remove()
    node = rest
  }
}

/** Appends what is new, so that a selection in the text survives and nothing is laid out twice. */
export function showText(node: Text, text: string): void {
  if (node.data === text) return
  if (text.startsWith(node.data)) node.appendData(text.slice(node.length))
  else node.data = text
}

function fits(node: ChildNode, tree: Tree): boolean {
  if (typeof tree === 'string') return node instanceof Text
  // A link that becomes another one is another element: nobody should click on what has just changed.
  return (
    node instanceof Element &&
    node.localName === tree.tag &&
    node.getAttribute('href') === (tree.attributes.href ?? null)
  )
}

function update(node: ChildNode, tree: Tree): void {
  if (typeof tree === 'string') {
    showText(node as Text, tree)
    return
  }
  const element = node as Element
  for (const { name } of [...element.attributes]) {
    if (!(name in tree.attributes)) element.removeAttribute(name)
  }
  for (const [name, value] of Object.entries(tree.attributes)) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value)
  }
  patch(element, tree.children)
}

function make(tree: Tree): ChildNode {
  if (typeof tree === 'string') return document.createTextNode(tree)
  const element = document.createElement(tree.tag)
  for (const [name, value] of Object.entries(tree.attributes)) element.setAttribute(name, value)
  element.append(...tree.children.map(make))
  return element
}
