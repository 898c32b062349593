/**
 * What requests of more than one surface are read with: members that may be null, objects of any kind, and the cursor that
 * a client brings. Pure.
 */
import { Type } from 'typebox'
import { Problem } from '../errors.ts'

export type Fields = Readonly<Record<string, unknown>>

export function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Of a member that may be null or left out, which means the same. */
export const optional = <T extends Type.TSchema>(schema: T) => Type.Optional(Type.Union([schema, Type.Null()]))

/** For the documents: it is checked where it is read. */
export const CursorHeader = Type.Object({
  'last-event-id': Type.Optional(Type.String({ description: 'the id of the last event received' })),
})

/**
 * @param parse of the surface's own ids; undefined for what is none
 * @throws Problem `invalid_request`
 */
export function readCursor<Cursor>(
  text: string | string[] | undefined,
  parse: (text: string) => Cursor | undefined,
): Cursor | undefined {
  if (text === undefined || text === '') return undefined
  const cursor = parse(String(text))
  if (cursor === undefined) throw new Problem('invalid_request', 'Last-Event-ID must be an id of an earlier event.')
  return cursor
}
