/**
 * The validators of requests and files. A schema is compiled when something is first held against it: all schemas of all
 * routes took a start a fifth of its time, and most processes never need most of them.
 */
import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv'
import ajvFormats from 'ajv-formats'
import { uuidPattern } from './text.ts'

export interface AjvOptions {
  /** Whether "5" may be read as 5. */
  readonly coerceTypes?: boolean
  /**
   * Whether each schema is checked before it is used. Ours are checked by tests, with the document of the API: to make the
   * validator of schemas takes longer than most processes have to do with the validators it is for.
   */
  readonly foreignSchemas?: boolean
}

export function createAjv({ coerceTypes = false, foreignSchemas = false }: AjvOptions = {}): Ajv {
  const ajv = new Ajv({
    coerceTypes,
    removeAdditional: false,
    useDefaults: false,
    allErrors: false,
    strict: false,
    meta: foreignSchemas,
    validateSchema: foreignSchemas,
  })
  ajvFormats.default(ajv)
  // The library's own takes a `urn:uuid:` prefix, which Postgres does not.
  ajv.addFormat('uuid', uuidPattern)
  return ajv
}

/** A validator as ajv makes them: what is wrong is in `errors` afterwards. */
export interface Validate {
  (data: unknown): boolean
  errors?: ErrorObject[] | null | undefined
}

/** @returns what compiles the schema with its first call. A schema that cannot be compiled fails then, and not before */
export function compileLater(ajv: Ajv, schema: object): Validate {
  let compiled: ValidateFunction | undefined
  const validate: Validate = (data) => {
    compiled ??= ajv.compile(schema)
    const isValid = compiled(data)
    validate.errors = compiled.errors
    return isValid
  }
  return validate
}
