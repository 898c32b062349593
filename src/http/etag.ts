/**
 * Versions as entity tags: what is read carries its version in `ETag`, and a write that names it in `If-Match` happens only
 * if nobody else has written meanwhile (RFC 9110, sections 8.8.3 and 13.1). Which version counts is decided by the
 * statement that writes; here is only how tags are spelled.
 */
import { Problem } from '../errors.ts'

export const tagOf = (version: number): string => `"${version}"`

/** Versions, or `*`: whichever is there. */
export type Versions = '*' | readonly number[]

/**
 * The versions that `If-Match` or `If-None-Match` name, as in RFC 9110, 13.1. A tag that was never given out names none.
 * @throws Problem `invalid_request` when it is neither `*` nor a list of tags
 */
export function readVersions(header: string, text: string | undefined): Versions | undefined {
  if (text === undefined) return undefined
  if (text.trim() === '*') return '*'
  const tags = text.split(',').map((tag) => /^(W\/)?"([\x21\x23-\x7e\x80-\xff]*)"$/.exec(tag.trim()))
  return tags.flatMap((tag) => {
    if (tag === null) throw new Problem('invalid_request', `${header} must be * or versions like "3", in quotes.`)
    const [, weak, version = ''] = tag
    // A weak tag is good enough to spare a download, and not to overwrite something.
    const usable = /^[1-9]\d{0,8}$/.test(version) && (weak === undefined || header === 'If-None-Match')
    return usable ? [Number(version)] : []
  })
}

export function meets(version: number, versions: Versions | undefined): boolean {
  return versions !== undefined && (versions === '*' || versions.includes(version))
}
