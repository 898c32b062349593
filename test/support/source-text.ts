/**
 * TypeScript source as the architecture rules see it: comments and the insides of strings replaced by spaces, so that
 * a rule about code is not triggered by prose. Offsets and line numbers stay those of the file. A scanner, not a
 * parser: enough for code that biome has formatted.
 */

export interface SourceText {
  /** The source as it is. */
  readonly raw: string
  /** Without comments; strings stay. */
  readonly withStrings: string
  /** Without comments and without what is inside strings, templates and regular expressions. */
  readonly code: string
  /** Only the comments. */
  readonly comments: string
  /** Nesting of (), [] and {} at each offset of `code`. */
  readonly depths: Int32Array
}

type Kind = 'code' | 'string' | 'comment'

// A slash after one of these begins a regular expression, else it divides.
const beforeRegex = /(?:^|[(,=:[!&|?{};+\-*%~^<>]|\b(?:return|typeof|case|in|of|do|else|yield|await))\s*$/

export function readSource(raw: string): SourceText {
  const kinds: Kind[] = new Array(raw.length).fill('code')
  // Where a template's ${ … } ends: the depth of braces at which it began.
  const templates: number[] = []
  let braces = 0
  let at = 0
  const mark = (kind: Kind, from: number, to: number): void => {
    kinds.fill(kind, from, Math.min(to, raw.length))
  }
  const readTemplate = (from: number): number => {
    let end = from
    while (end < raw.length && raw[end] !== '`' && !raw.startsWith('${', end)) end += raw[end] === '\\' ? 2 : 1
    mark('string', from, end)
    if (raw[end] === '$') {
      templates.push(braces)
      braces += 1
      return end + 2
    }
    return end + 1
  }

  while (at < raw.length) {
    const char = raw[at]
    const rest = raw.slice(at, at + 2)
    if (rest === '//' || rest === '/*') {
      const close = rest === '//' ? raw.indexOf('\n', at) : raw.indexOf('*/', at + 2) + 2
      const end = close < at ? raw.length : close
      mark('comment', at, end)
      at = end
    } else if (char === "'" || char === '"') {
      const end = endOfQuoted(raw, at + 1, char)
      mark('string', at + 1, end)
      at = end + 1
    } else if (char === '`') {
      at = readTemplate(at + 1)
    } else if (char === '/' && beforeRegex.test(raw.slice(Math.max(0, at - 40), at))) {
      const end = endOfRegex(raw, at + 1)
      mark('string', at + 1, end)
      at = end + 1
    } else {
      if (char === '{') braces += 1
      if (char === '}') braces -= 1
      at += 1
      if (char === '}' && templates.at(-1) === braces) {
        templates.pop()
        at = readTemplate(at)
      }
    }
  }

  const keep = (...shown: readonly Kind[]): string =>
    [...kinds].map((kind, i) => (shown.includes(kind) || raw[i] === '\n' ? raw[i] : ' ')).join('')
  const code = keep('code')
  return { raw, withStrings: keep('code', 'string'), code, comments: keep('comment'), depths: measureDepths(code) }
}

/** Line number, from 1, of an offset. */
export function lineAt(raw: string, offset: number): number {
  return raw.slice(0, offset).split('\n').length
}

function measureDepths(code: string): Int32Array {
  const depths = new Int32Array(code.length)
  let depth = 0
  for (let i = 0; i < code.length; i++) {
    if ('([{'.includes(code[i] ?? '')) depth += 1
    depths[i] = depth
    if (')]}'.includes(code[i] ?? '')) depth -= 1
  }
  return depths
}

function endOfQuoted(raw: string, from: number, quote: string): number {
  let end = from
  while (end < raw.length && raw[end] !== quote && raw[end] !== '\n') end += raw[end] === '\\' ? 2 : 1
  return end
}

function endOfRegex(raw: string, from: number): number {
  let end = from
  let inClass = false
  while (end < raw.length && raw[end] !== '\n' && (inClass || raw[end] !== '/')) {
    if (raw[end] === '[') inClass = true
    if (raw[end] === ']') inClass = false
    end += raw[end] === '\\' ? 2 : 1
  }
  return end
}
