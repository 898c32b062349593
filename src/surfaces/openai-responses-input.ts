/**
 * From what a client of OpenAI Responses sends to what was said: the items of `input`, tools, and the form of the reply.
 * Pure, and tolerant of what clients send along that means nothing here.
 *
 * It refuses what would be lost without a word: items, content and tools of kinds that the gateway cannot give to a model.
 * Reasoning that a client gives back is left out, because the gateway keeps what a provider wants back of it itself.
 */
import type { Part } from '../log/event.ts'
import { type Fields, isFields } from './fields.ts'
import { type Conversation, invalid, type Said, toConversation } from './openai-conversation.ts'
import { readFunction, toCall } from './openai-fields.ts'

/** An item of an earlier response, named by its id alone. */
export interface Reference {
  readonly place: string
  readonly role: 'reference'
  readonly runId: string
  /** Of the part in the message of that run. */
  readonly part: number
}

const itemIdPattern = /^(?:msg|rs|fc)_([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})_(\d{1,6})$/

/** @throws Problem `invalid_request` with the item's place */
export function readInput(input: string | readonly unknown[]): (Said | Reference)[] {
  if (typeof input === 'string') return [{ place: 'input', role: 'user', text: input }]
  return input.flatMap((item, index) => readItem(item, `input.${index}`))
}

function readItem(item: unknown, place: string): (Said | Reference)[] {
  if (!isFields(item)) throw invalid(place, 'It must be an object.')
  const type = item.type ?? ('role' in item ? 'message' : 'id' in item ? 'item_reference' : undefined)
  switch (type) {
    case 'message':
      return [readMessage(item, place)]
    case 'function_call':
      return [{ place, role: 'assistant', parts: [readCall(item, place)] }]
    case 'function_call_output':
      return [{ place, role: 'tool', callId: wordOf(item, 'call_id', place), output: readOutput(item.output, place) }]
    case 'reasoning':
      return []
    case 'item_reference':
      return [readReference(item, place)]
    default:
      throw invalid(`${place}.type`, 'It must be message, function_call, function_call_output or reasoning.')
  }
}

function readMessage({ role, content }: Fields, place: string): Said {
  const text = readContent(content, `${place}.content`)
  if (role === 'user') return { place, role, text }
  if (role === 'system' || role === 'developer') return { place, role: 'system', text }
  if (role === 'assistant') return { place, role, parts: [{ kind: 'text', text }] }
  throw invalid(`${place}.role`, 'It must be user, assistant, system or developer.')
}

function readContent(content: unknown, place: string): string {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) throw invalid(place, 'It must be text, or a list of texts.')
  return content
    .map((piece: unknown, index) => {
      const { type, text, refusal } = isFields(piece) ? piece : {}
      const words = type === 'refusal' ? refusal : text
      const isText = type === 'input_text' || type === 'output_text' || type === 'text' || type === 'refusal'
      if (isText && typeof words === 'string') return words
      throw invalid(`${place}.${index}`, 'It must be input_text or output_text: images, files and audio are not taken.')
    })
    .join('')
}

function readCall(item: Fields, place: string): Part {
  const [callId, name, text] = [
    wordOf(item, 'call_id', place),
    wordOf(item, 'name', place),
    wordOf(item, 'arguments', place, 0),
  ]
  return toCall(callId, name, text)
}

function readOutput(output: unknown, place: string): string {
  if (output === undefined || output === null) throw invalid(`${place}.output`, 'It is missing.')
  return readContent(output, `${place}.output`)
}

function readReference({ id }: Fields, place: string): Reference {
  const match = typeof id === 'string' ? itemIdPattern.exec(id) : null
  if (match === null) throw invalid(`${place}.id`, 'It must be the id of an item of a response of this gateway.')
  return { place, role: 'reference', runId: match.slice(1, 6).join('-'), part: Number(match[6]) }
}

/** The item that is meant. @returns undefined when the part has none that could be given back */
export function fromReference({ place }: Reference, part: Part | undefined): Said[] | undefined {
  if (part?.kind === 'reasoning') return []
  if (part?.kind !== 'text' && part?.kind !== 'tool_call') return undefined
  const { kind, text, call_id, name, input } = part
  const call = kind === 'text' ? {} : { call_id, name, ...(input === undefined ? {} : { input }) }
  return [{ place, role: 'assistant', parts: [{ kind, text, ...call } as Part] }]
}

/**
 * What is asked. Behind a response that is named all of the input is new; so is input without any reply in it.
 * @throws Problem `invalid_request`
 */
export function toAskedOf(said: readonly Said[], followsResponse: boolean): Partial<Conversation> {
  const hasReply = said.some(({ role }) => role === 'assistant')
  const answers = said.flatMap((one) => (one.role === 'tool' ? [{ call_id: one.callId, output: one.output }] : []))
  if (!followsResponse && (hasReply || answers.length === 0)) return toConversation(said, 'input')
  const reply = said.find(({ role }) => role === 'assistant')
  if (reply !== undefined) throw invalid(reply.place, 'With previous_response_id the input holds only what is new.')
  const words = said.flatMap((one) => (one.role === 'user' ? [one.text] : []))
  const instructions = said.flatMap((one) => (one.role === 'system' ? [one.text] : []))
  if (words.length === 0 && answers.length === 0) throw invalid('input', 'It holds no message of the user.')
  if (words.length > 0 && answers.length > 0) {
    throw invalid('input', 'Outputs of functions and a message of the user have to come one after the other.')
  }
  return {
    ...(instructions.length > 0 && { instructions: instructions.join('\n\n') }),
    ...(words.length > 0 ? { message: words.join('\n\n') } : { tool_results: answers }),
  }
}

/** @throws Problem `invalid_request` for a tool that is not a function */
export function readTools(tools: readonly Fields[]) {
  return tools.map((tool, index) => {
    const place = `tools.${index}`
    if (tool.type !== 'function') throw invalid(`${place}.type`, 'Only tools of the type function are taken.')
    return readFunction(tool, place)
  })
}

/** @throws Problem `invalid_request` */
export function readToolChoice(choice: unknown): 'auto' | 'none' | 'required' | { readonly name: string } {
  if (choice === 'auto' || choice === 'none' || choice === 'required') return choice
  if (isFields(choice) && choice.type === 'function') return { name: wordOf(choice, 'name', 'tool_choice') }
  throw invalid('tool_choice', 'It must be auto, none, required, or a function by its name.')
}

function wordOf(item: Fields, name: string, place: string, unitsMin = 1): string {
  const word = item[name]
  if (typeof word === 'string' && word.length >= unitsMin) return word
  throw invalid(`${place}.${name}`, 'It must be text.')
}
