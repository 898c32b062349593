/**
 * Money as decimal text: added and compared exactly, the way the database does, because a float loses the last places of a
 * price by the token. A text is digits, with a point and more digits or without, and never negative.
 */

/** @returns the sum, with as many decimal places as the longer one has, as Postgres's numeric would */
export function addDecimals(a: string, b: string): string {
  const places = Math.max(placesOf(a), placesOf(b))
  const sum = (scale(a, places) + scale(b, places)).toString().padStart(places + 1, '0')
  return places === 0 ? sum : `${sum.slice(0, -places)}.${sum.slice(-places)}`
}

export function largerDecimal(a: string, b: string): string {
  const places = Math.max(placesOf(a), placesOf(b))
  return scale(a, places) >= scale(b, places) ? a : b
}

const placesOf = (text: string): number => text.split('.')[1]?.length ?? 0

function scale(text: string, places: number): bigint {
  const [whole = '', fraction = ''] = text.split('.')
  return BigInt(whole + fraction.padEnd(places, '0'))
}
