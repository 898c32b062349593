/**
 * What the tests of the native adapters share: the parts that a reply comes to, the own fixtures of both dialects, the
 * recordings of real providers when they are there, and the ways to cut a stream. It asserts nothing.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import { Problem } from '../../src/errors.ts'
import { type AnthropicOptions, createAnthropic } from '../../src/upstream/anthropic.ts'
import { createGemini, type GeminiOptions } from '../../src/upstream/gemini.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from '../../src/upstream/upstream.ts'
import { Feed, request, type Stream } from './streams.ts'

/** A part as a draft makes it, with what the events said of it. */
export interface ReadPart {
  kind: 'text' | 'reasoning' | 'tool_call' | 'source' | 'file'
  text: string
  callId?: string
  name?: string
  signature?: string
  redacted?: true
  url?: string
  title?: string
  mediaType?: string
}

export interface Reading {
  parts: ReadPart[]
  usage: unknown
  finish: string | undefined
  id: string | undefined
  model: string | undefined
  /** `complete`, or the code of what was thrown. */
  verdict: string
  error: unknown
}

/** Reads a reply to its end. What was thrown is in `error`. */
export async function read(
  upstream: Upstream,
  asked: UpstreamRequest = request,
  signal: AbortSignal = new AbortController().signal,
): Promise<Reading> {
  const seen: Reading = {
    parts: [],
    usage: undefined,
    finish: undefined,
    id: undefined,
    model: undefined,
    verdict: 'complete',
    error: undefined,
  }
  const calls = new Map<string, ReadPart>()
  try {
    for await (const event of upstream.stream(asked, signal)) add(seen, calls, event)
  } catch (error) {
    seen.error = error
    seen.verdict = error instanceof Problem ? error.code : String(error)
  }
  return seen
}

function add(seen: Reading, calls: Map<string, ReadPart>, event: UpstreamEvent): void {
  const { parts } = seen
  const last = parts.at(-1)
  switch (event.type) {
    case 'text':
    case 'reasoning':
      if (last?.kind === event.type && last.signature === undefined) last.text += event.text
      else parts.push({ kind: event.type, text: event.text })
      break
    case 'tool_call': {
      let call = calls.get(event.key)
      if (call === undefined) {
        call = {
          kind: 'tool_call',
          text: '',
          ...(event.callId === undefined ? {} : { callId: event.callId }),
          ...(event.name === undefined ? {} : { name: event.name }),
        }
        calls.set(event.key, call)
        parts.push(call)
      }
      call.text += event.arguments
      break
    }
    case 'signature': {
      const { signature, key, redacted } = event
      const spoken = parts.findLast(({ kind }) => kind === 'text' || kind === 'reasoning')
      const sealed = key === undefined ? spoken : calls.get(key)
      if (redacted === true || sealed === undefined)
        parts.push({ kind: 'reasoning', text: '', signature, redacted: true })
      else sealed.signature = signature
      break
    }
    case 'source':
      parts.push({
        kind: 'source',
        text: '',
        ...(event.url === undefined ? {} : { url: event.url }),
        ...(event.title === undefined ? {} : { title: event.title }),
      })
      break
    case 'file':
      parts.push({ kind: 'file', text: '', url: event.url, mediaType: event.mediaType })
      break
    case 'usage':
      seen.usage = event.usage
      break
    case 'finish':
      seen.finish = event.reason
      break
    case 'response':
      seen.id = event.id
      seen.model = event.model
      break
  }
}

/** The text parts, joined. */
export function textOf({ parts }: Reading): string {
  return parts.map(({ kind, text }) => (kind === 'text' ? text : '')).join('')
}

/** Without the error itself, so that two readings can be compared. */
export function plain({ error: _, ...rest }: Reading): Omit<Reading, 'error'> {
  return rest
}

const limits = { firstByteMs: 20_000, idleMs: 20_000, totalMs: 60_000 }

/** Adapters with limits that no passing test reaches. */
export function anthropicAt(baseUrl: string, options: Partial<AnthropicOptions> = {}): Upstream {
  return createAnthropic({ baseUrl, ...limits, ...options })
}

export function geminiAt(baseUrl: string, options: Partial<GeminiOptions> = {}): Upstream {
  return createGemini({ baseUrl, ...limits, ...options })
}

/** Reads a reply that comes in these pieces, each of them one read, and then `end`. */
export type ReadFed = (pieces: readonly (Uint8Array | string)[], end?: 'fin' | Error) => Promise<Reading>

export const readAnthropic: ReadFed = (pieces, end) =>
  read(anthropicAt('http://feed.invalid/v1', { dispatcher: feed(pieces, end) }))

export const readGemini: ReadFed = (pieces, end) =>
  read(geminiAt('http://feed.invalid/v1beta', { dispatcher: feed(pieces, end) }))

function feed(pieces: readonly (Uint8Array | string)[], end?: 'fin' | Error): Feed {
  return new Feed(
    pieces.map((piece) => Buffer.from(piece)),
    end,
  )
}

const projectRoot = resolve(import.meta.dirname, '../..')

/** The own streams of a dialect, by name. */
export function ownStreamsOf(dialect: 'anthropic' | 'gemini'): Stream[] {
  const folder = resolve(projectRoot, 'test/fixtures', dialect)
  return readdirSync(folder)
    .sort()
    .map((file) => ({ name: basename(file, `.${dialect}.sse`), bytes: readFileSync(resolve(folder, file)) }))
}

/**
 * A recording of a real provider, which is not part of the project: framed as SSE, its name begins with `number`.
 * @returns undefined when the folder of recordings is not there
 */
export function recording(number: string): Stream | undefined {
  const folder = process.env.VERBATIM_FIXTURES ?? resolve(projectRoot, '../shared/fixtures')
  if (!existsSync(folder)) return undefined
  const files = [
    ...readdirSync(resolve(folder, 'extracted')).map((file) => `extracted/${file}`),
    ...readdirSync(folder),
  ]
  const file = files.find((name) => basename(name).startsWith(`${number}-`) && /\.(sse|txt)$/.test(name))
  if (file === undefined) return undefined
  return { name: `recording ${number}`, bytes: readFileSync(resolve(folder, file)) }
}

/** With other line ends. */
export function withLineEnd(bytes: Uint8Array, lineEnd: '\n' | '\r\n'): Buffer {
  return Buffer.from(Buffer.from(bytes).toString().replaceAll('\r\n', '\n').replaceAll('\n', lineEnd))
}

/** Every place where an event has just ended. */
export function eventEnds(bytes: Uint8Array): number[] {
  const whole = Buffer.from(bytes)
  const blank = whole.includes('\r\n\r\n') ? '\r\n\r\n' : '\n\n'
  const ends: number[] = []
  for (let at = whole.indexOf(blank); at !== -1; at = whole.indexOf(blank, at + 1)) ends.push(at + blank.length)
  return ends
}
