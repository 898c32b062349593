/**
 * The tools of this server: functions that a model may call while it makes a reply. A tool is registered once, at start,
 * with a TypeBox schema for what it takes; what a model sends is checked against it, and what the function gives back
 * becomes a part of the message.
 *
 * Nothing that goes wrong in a tool is the end of a run. What does not fit the schema, throws, takes too long or answers
 * too much is a tool error, with a sentence of ours: what was thrown goes to the log of the server, because it can hold
 * anything. A tool that does not end when its signal says so is left behind; what it says later is heard by nobody.
 *
 * A tool may have been run, and its process killed, before its answer was stored. The run is then not asked for again (its
 * call is in the checkpoint that is written before every call), so a tool is never run twice for one call.
 */
import type { ValidateFunction } from 'ajv'
import type { Static, TSchema } from 'typebox'
import { createAjv } from '../http/ajv.ts'
import { cleanJson } from '../http/text.ts'
import { type ToolError, toolNamePattern } from '../log/event.ts'
import type { ToolDefinition } from '../upstream/upstream.ts'

export interface ToolContext {
  readonly runId: string
  readonly sessionId: string
  readonly callId: string
}

export interface ServerTool<Schema extends TSchema = TSchema> {
  /** `[A-Za-z0-9_-]{1,64}` */
  readonly name: string
  /** For the model. */
  readonly description: string
  /** Of an object. */
  readonly parameters: Schema
  /** How long a call may take; 30 s when it is not said. */
  readonly timeoutMs?: number
  /** @returns what can be written as JSON; nothing is null */
  execute(input: Static<Schema>, context: ToolContext, signal: AbortSignal): unknown
}

/** For the types: what `execute` takes is what the schema says. */
export function defineTool<Schema extends TSchema>(tool: ServerTool<Schema>): ServerTool {
  return tool as unknown as ServerTool
}

export interface ToolCall {
  readonly name: string
  /** Undefined when the arguments were not JSON. */
  readonly input: unknown
  readonly context: ToolContext
}

export type ToolAnswer = { readonly output: unknown } | { readonly error: ToolError }

export interface Tools {
  /** Of those of `names` that are registered; without names of all. */
  definitions(names?: readonly string[]): readonly ToolDefinition[]
  /** Never throws. @param signal ends the call without an answer that counts */
  execute(call: ToolCall, signal: AbortSignal): Promise<ToolAnswer>
}

const timeoutDefaultMs = 30_000
const timeoutMaxMs = 600_000
/** Of an answer as JSON: it is stored, shown, and paid for with every step behind it. */
const outputBytesMax = 256 * 1024

/**
 * @param onThrow told of what a tool threw, for the log
 * @throws Error when a tool cannot be registered
 */
export function createTools(
  registered: readonly ServerTool[],
  onThrow: (name: string, context: ToolContext, error: unknown) => void,
): Tools {
  const ajv = createAjv({ foreignSchemas: true })
  const tools = new Map<string, { readonly tool: ServerTool; readonly validate: ValidateFunction }>()
  for (const tool of registered) {
    const { name, timeoutMs = timeoutDefaultMs } = tool
    if (!toolNamePattern.test(name)) throw new Error(`A tool's name must be ${toolNamePattern.source}: ${name}`)
    if (tools.has(name)) throw new Error(`There are two tools named ${name}`)
    if (!(timeoutMs > 0 && timeoutMs <= timeoutMaxMs)) {
      throw new Error(`timeoutMs of the tool ${name} must be 1 to ${timeoutMaxMs}`)
    }
    if ((tool.parameters as { type?: unknown }).type !== 'object') {
      throw new Error(`parameters of the tool ${name} must be the schema of an object`)
    }
    tools.set(name, { tool, validate: ajv.compile(tool.parameters) })
  }

  return {
    definitions: (names = [...tools.keys()]) =>
      names.flatMap((name) => {
        const tool = tools.get(name)?.tool
        if (tool === undefined) return []
        const { description, parameters } = tool
        return [{ name, description, parameters: parameters as Readonly<Record<string, unknown>> }]
      }),
    async execute({ name, input, context }, signal) {
      const known = tools.get(name)
      if (known === undefined) return failed('unknown_tool', 'There is no such tool.')
      const { tool, validate } = known
      if (!validate(input)) {
        const [first] = validate.errors ?? []
        return failed('invalid_input', `The input${first?.instancePath ?? ''} ${first?.message ?? 'is not valid'}.`)
      }
      const { timeoutMs = timeoutDefaultMs } = tool
      const limit = limitTime(signal, timeoutMs)
      try {
        return toAnswer(
          await untilAborted(async () => tool.execute(input as never, context, limit.signal), limit.signal),
        )
      } catch (error) {
        if (signal.aborted) return failed('stopped', 'The reply was stopped before the tool had answered.')
        if (limit.isOver) return failed('timeout', `The tool did not answer within ${timeoutMs} ms.`)
        onThrow(name, context, error)
        return failed('failed', 'The tool failed.')
      } finally {
        limit.clear()
      }
    },
  }
}

const failed = (code: string, message: string): ToolAnswer => ({ error: { code, message } })

function toAnswer(value: unknown): ToolAnswer {
  // Throws for what is no JSON (a cycle, a bigint): the tool's own mistake.
  const json = JSON.stringify(value) ?? 'null'
  if (Buffer.byteLength(json) > outputBytesMax) {
    return failed('too_large', `The tool answered more than ${outputBytesMax} bytes.`)
  }
  return { output: cleanJson(JSON.parse(json)) }
}

/** A signal that is aborted with another one, or when `ms` have passed; `clear` frees its timer and its listener. */
export function limitTime(signal: AbortSignal, ms: number) {
  const controller = new AbortController()
  let isOver = false
  const timer = setTimeout(() => {
    isOver = true
    controller.abort(new Error('The time is up'))
  }, ms)
  const onAbort = () => controller.abort(signal.reason)
  if (signal.aborted) onAbort()
  else signal.addEventListener('abort', onAbort, { once: true })
  return {
    signal: controller.signal,
    /** The time is up, and nothing else. */
    get isOver() {
      return isOver
    },
    clear() {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
    },
  }
}

/** What `work` comes to, unless the signal comes first; then its reason is thrown, and `work` is left behind. */
async function untilAborted<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted()
  const aborted = Promise.withResolvers<never>()
  const onAbort = () => aborted.reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  const working = work()
  // Nobody waits for it any more when the signal has come first.
  working.catch(() => undefined)
  try {
    return await Promise.race([working, aborted.promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
