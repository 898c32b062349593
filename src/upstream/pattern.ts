/**
 * Patterns of model names, as people write them: `*` stands for any characters, also none; everything else for itself.
 * Matched by cutting and not as a regular expression: names come with requests, and a pattern with many stars must not
 * make one of them slow.
 */

/** Whether the whole of `name` fits. Case counts, as it does for providers. */
export function fitsPattern(pattern: string, name: string): boolean {
  const [start = '', ...pieces] = pattern.split('*')
  const end = pieces.pop()
  if (end === undefined) return name === pattern
  if (name.length < start.length + end.length || !name.startsWith(start) || !name.endsWith(end)) return false
  const last = name.length - end.length
  let at = start.length
  for (const piece of pieces) {
    const found = name.indexOf(piece, at)
    if (found === -1 || found + piece.length > last) return false
    at = found + piece.length
  }
  return true
}

/** Orders patterns that fit the same name, the one that says most first: the one with most characters of its own. */
export function compareSpecificity(a: string, b: string): number {
  return literalUnits(b) - literalUnits(a) || Number(a.includes('*')) - Number(b.includes('*'))
}

function literalUnits(pattern: string): number {
  return pattern.replaceAll('*', '').length
}
