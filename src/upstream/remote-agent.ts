/**
 * An agent in another process, which answers a POST with events over SSE (docs/agents.md has them all): the adapter of the
 * agent port for pipelines that are written in another language or live elsewhere. It is asked once for each reply and
 * cannot ask the gateway back, so it calls its models itself and says what they used.
 *
 * What comes is read as a provider's reply is (http, reader): the same limits, the same bounds, a `done` that makes it
 * whole, and errors without the agent's words. Every payload is checked: one that is not as the protocol says fails the
 * reply, an event that is not in it is ignored. The sockets belong to the agent and are freed by `close`; beside them it
 * holds the request's headers, which never enter an error.
 */
import { Problem } from '../errors.ts'
import type { Part, ToolError, Usage } from '../log/event.ts'
import type { Agent, AgentEvent, AgentRequest } from './agent.ts'
import { createHttpStream, type HttpLimits, usualLimits } from './http.ts'
import { countOf, type HeldCall, label, parse, ReplyReader } from './reader.ts'
import { isRecord, reportedError } from './refusal.ts'
import type { UpstreamMessage } from './upstream.ts'

const idPattern = /^[A-Za-z0-9._:-]{1,64}$/
/** Of a call's id and its tool's name. */
const callUnitsMax = 256
const phaseUnitsMax = 64
const roundMax = 2 ** 31 - 1
const titleUnitsMax = 500
/** Of one reply, as many as a session can have. Each is bounded by the longest event that is read. */
const artifactsMax = 100
/** Deeper JSON is refused: walking it is recursion. */
const depthMax = 32

export interface RemoteAgentOptions extends Partial<HttpLimits> {
  /** `agent_id` of a request: `[A-Za-z0-9._:-]{1,64}`. */
  readonly id: string
  readonly url: string
  /** Of each request, such as `authorization`. */
  readonly headers?: Readonly<Record<string, string>>
}

export interface RemoteAgent extends Agent {
  /** Frees sockets. Replies still open are cut. */
  close(): Promise<void>
}

/** @throws TypeError when the id or the URL cannot be used */
export function createRemoteAgent(options: RemoteAgentOptions): RemoteAgent {
  const { id, headers = {}, ...limits } = options
  if (!idPattern.test(id)) throw new TypeError('The id of a remote agent must have 1 to 64 of A-Z a-z 0-9 . _ : -')
  // Not the URL's own error, which quotes it: a token may be in it.
  if (!URL.canParse(options.url) || !/^https?:/i.test(options.url)) {
    throw new TypeError(`The url of the agent ${id} must be an address of http or https`)
  }
  const url = new URL(options.url)
  const lowered = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
  const remote = createHttpStream<AgentRequest, AgentEvent>({
    ...usualLimits,
    ...limits,
    toCall: (request) => ({ url, headers: lowered, body: JSON.stringify(toBody(id, request)) }),
    createReader: () => new RemoteReader(),
  })
  return {
    id,
    reply: (request, _, signal) => remote.stream(request, signal),
    close: remote.close,
  }
}

function toBody(agentId: string, { runId, sessionId, messageId, messages, metadata }: AgentRequest): object {
  return {
    agent_id: agentId,
    run_id: runId,
    session_id: sessionId,
    message_id: messageId,
    messages: messages.map(toWire),
    metadata,
  }
}

function toWire(message: UpstreamMessage): object {
  if (message.role === 'tool') {
    const { role, callId, name, content, isError = false } = message
    return { role, call_id: callId, name, content, is_error: isError }
  }
  if (message.role !== 'assistant' || message.parts === undefined)
    return { role: message.role, content: message.content }
  return { role: message.role, content: message.content, parts: message.parts.flatMap(toOpenPart) }
}

/** Seals are between the gateway and the provider that made them. */
function toOpenPart({ signature, redacted, ...part }: Part): readonly Part[] {
  return redacted ? [] : [part]
}

interface Call extends HeldCall {
  answered: boolean
}

class RemoteReader extends ReplyReader<AgentEvent> {
  readonly #calls = new Map<string, Call>()
  #artifacts = 0

  override readData(data: string, name: string | undefined): void {
    if (this.done || this.failure !== undefined || name === undefined || !eventNames.has(name)) return
    const payload = parse(data)
    // The base counts what it adds; what else is said counts as it came, so that a reply of nothing but steps has an end too.
    if (ownEvents.has(name) && !this.grow(data.length)) return
    if (!isRecord(payload) || !this.#read(name, payload)) {
      this.fail(`The agent sent an event of the type ${name} that cannot be read.`)
    }
  }

  /** @returns false for what is not as the protocol says */
  #read(name: string, payload: Record<string, unknown>): boolean {
    switch (name) {
      case 'text':
      case 'reasoning':
        if (typeof payload.text !== 'string') return false
        this.addText(name, payload.text)
        return true
      case 'tool_call':
        return this.#readCall(payload)
      case 'tool_result':
        return this.#readResult(payload)
      case 'source':
        this.addSource(payload.url, payload.title)
        return true
      case 'file':
        this.addFile(payload.media_type, payload.url)
        return true
      case 'progress':
        return this.#readProgress(payload)
      case 'artifact':
        return this.#readArtifact(payload)
      case 'title':
        return this.#readTitle(payload)
      case 'usage':
        return this.#readUsage(payload)
      case 'error':
        this.flushHalves()
        this.failure = failureOf(payload)
        return true
      default:
        return this.#readDone(payload)
    }
  }

  #readCall({ call_id, name, input = {} }: Record<string, unknown>): boolean {
    if (!isWord(call_id) || !isWord(name) || this.#calls.has(call_id)) return false
    const value = cleanJson(input)
    if (value === undefined) return false
    const call: Call = { key: String(this.#calls.size), half: '', answered: false }
    if (!this.addCall(call, label(call_id), label(name))) return true
    this.#calls.set(call_id, call)
    this.addArguments(call, JSON.stringify(value))
    return true
  }

  #readResult({ call_id, output, error }: Record<string, unknown>): boolean {
    const call = isWord(call_id) ? this.#calls.get(call_id) : undefined
    if (call === undefined || call.answered || (output === undefined) === (error === undefined)) return false
    call.answered = true
    if (error !== undefined) {
      this.events.push({ type: 'tool_result', key: call.key, error: toToolError(error) })
      return true
    }
    const value = cleanJson(output)
    if (value === undefined) return false
    this.events.push({ type: 'tool_result', key: call.key, output: value })
    return true
  }

  #readProgress({ phase, round }: Record<string, unknown>): boolean {
    if (phase !== undefined && typeof phase !== 'string') return false
    const count = countOf(round)
    if (round !== undefined && (count === undefined || count > roundMax)) return false
    this.events.push({
      type: 'progress',
      ...(phase === undefined ? {} : { phase: label(phase, phaseUnitsMax) }),
      ...(count === undefined ? {} : { round: count }),
    })
    return true
  }

  #readArtifact({ name, content_type, body }: Record<string, unknown>): boolean {
    if (!isWord(name) || !isWord(content_type) || body === undefined || ++this.#artifacts > artifactsMax) return false
    // JSON may come as a value; as text it is taken as it is.
    const text = typeof body === 'string' ? label(body, body.length) : textOf(cleanJson(body))
    if (text === undefined) return false
    this.events.push({ type: 'artifact', name: label(name), contentType: label(content_type), body: text })
    return true
  }

  #readTitle({ title }: Record<string, unknown>): boolean {
    if (typeof title !== 'string') return false
    const name = label(title.trim(), titleUnitsMax)
    if (name !== '') this.events.push({ type: 'title', title: name })
    return true
  }

  #readUsage(payload: Record<string, unknown>): boolean {
    const input = countOf(payload.input_tokens)
    const output = countOf(payload.output_tokens)
    if (input === undefined || output === undefined) return false
    const usage: Usage = {
      input_tokens: input,
      output_tokens: output,
      total_tokens: countOf(payload.total_tokens) ?? input + output,
    }
    for (const name of detailNames) {
      const count = countOf(payload[name])
      if (count !== undefined) usage[name] = count
    }
    this.addLabels(undefined, payload.model)
    this.addUsage(usage)
    return true
  }

  #readDone({ finish_reason = 'stop' }: Record<string, unknown>): boolean {
    if (!isWord(finish_reason)) return false
    this.addFinish(finish_reason)
    this.done = true
    return true
  }
}

const eventNames: ReadonlySet<string> = new Set([
  'text',
  'reasoning',
  'tool_call',
  'tool_result',
  'source',
  'file',
  'progress',
  'artifact',
  'title',
  'usage',
  'error',
  'done',
])
const ownEvents: ReadonlySet<string> = new Set(['tool_result', 'progress', 'title', 'usage'])
const detailNames = ['reasoning_tokens', 'cached_input_tokens', 'cache_write_tokens'] as const

function isWord(value: unknown): value is string {
  return typeof value === 'string' && value !== '' && value.length <= callUnitsMax
}

/** Of what it says of its error, only whether it may be asked again counts, and a code that tells as much. */
function failureOf({ code, retryable }: Record<string, unknown>): Problem {
  const known = retryable === undefined ? reportedError({ code }).code : undefined
  return new Problem(
    known ?? (retryable === true ? 'upstream_unavailable' : 'upstream_rejected'),
    'The agent reported an error within its reply.',
  )
}

/** A code of the tool's is kept when it looks like one; its message never is. */
function toToolError(error: unknown): ToolError {
  const code = isRecord(error) ? error.code : error
  const isCode = typeof code === 'string' && /^[a-z0-9_]{1,64}$/.test(code)
  return { code: isCode ? code : 'tool_failed', message: 'The tool failed.' }
}

function textOf(value: unknown): string | undefined {
  return value === undefined ? undefined : JSON.stringify(value)
}

/** Fit for the database, keys too. @returns undefined when it is nested deeper than `depthMax` */
function cleanJson(value: unknown, depth = 0): unknown {
  if (typeof value === 'string') return label(value, value.length)
  if (typeof value !== 'object' || value === null) return value
  if (depth >= depthMax) return undefined
  if (Array.isArray(value)) {
    const items = value.map((item) => cleanJson(item, depth + 1))
    return items.includes(undefined) ? undefined : items
  }
  const members = Object.entries(value).map(([name, item]) => [label(name, name.length), cleanJson(item, depth + 1)])
  return members.some(([, item]) => item === undefined) ? undefined : Object.fromEntries(members)
}
