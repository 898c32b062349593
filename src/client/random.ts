/** Names that nobody else makes. `crypto.randomUUID` is missing where a page comes over plain http from another machine. */

const keyBytes = 16

function randomBytes(count: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(count))
}

/** An idempotency key. */
export function randomKey(): string {
  return Array.from(randomBytes(keyBytes), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

export function base64url(bytes: number): string {
  return btoa(String.fromCharCode(...randomBytes(bytes)))
    .replaceAll('+', '-')
    .replaceAll('/', '_')
    .replaceAll('=', '')
}
