/**
 * A session as Markdown, for people: a heading for each message of the active branch, then those beside it, then the
 * documents. What somebody wrote stands between fences that are longer than any in it, so it is there to the letter and
 * can open or close nothing around it, whatever Markdown or HTML it holds; names and titles are escaped.
 *
 * It is read from the same pages as the other forms, and breaks off the same way.
 */
import type { Owner } from '../http/identity.ts'
import type { Part } from '../log/event.ts'
import { roleNames, untitled } from './model.ts'
import type { ExportedMessage, ExportedSession } from './transfer.ts'
import type { ExportHead, ExportReader } from './transfer-export.ts'

/** A session as Markdown, piece by piece. @param exportedAt as ISO text */
export async function* writeMarkdown(
  reader: ExportReader,
  owner: Owner,
  head: ExportHead,
  exportedAt: string,
): AsyncGenerator<string> {
  yield describeSession(head.session, exportedAt)
  const aside = await reader.readAside(owner, head)
  for await (const page of reader.readMessagePages(owner, head)) {
    for (const message of page) if (!aside.has(message.seq)) yield describeMessage(message, '')
  }
  const seqs = [...aside.keys()]
  const [last = 0, first = 1] = [seqs[0], seqs.at(-1)]
  if (last > 0) yield '# Other branches\n\n'
  for await (const page of reader.readMessagePages(owner, head, { after: first - 1, upTo: last })) {
    for (const message of page) {
      const before = aside.get(message.seq)
      if (before === undefined) continue
      yield describeMessage(message, before === null ? ' (a beginning)' : ` (follows ${before})`)
    }
  }
  if (head.hasArtifacts) yield '# Artifacts\n\n'
  for await (const page of reader.readArtifactPages(owner, head)) {
    for (const { name, version, content_type, created_at, body } of page) {
      yield `## ${escapeMarks(name)}, version ${version} · ${escapeMarks(content_type)} · ${created_at}\n\n${fence(body)}\n`
    }
  }
}

function describeSession(session: ExportedSession, exportedAt: string): string {
  const facts: readonly (readonly [string, string | number | null])[] = [
    ['Session', session.id],
    ['Kind', session.kind],
    ['Status', session.status],
    ['Mode', session.mode],
    ['Model', session.model],
    ['Tags', session.tags.join(', ')],
    ['Created', session.created_at],
    ['Last activity', session.last_activity_at],
    ['Exported', exportedAt],
    ['Messages', session.message_count],
    ['Tokens', session.total_tokens],
    ['Cost in USD', session.total_cost_usd],
  ]
  const lines = facts.flatMap(([name, value]) =>
    value === null || value === '' ? [] : [`- ${name}: ${escapeMarks(String(value))}\n`],
  )
  const input = session.input === null || session.input === '' ? '' : `Input:\n\n${fence(session.input)}\n`
  return `# ${escapeMarks(session.title ?? '') || untitled}\n\n${lines.join('')}\n${input}`
}

function describeMessage(message: ExportedMessage, place: string): string {
  const { seq, role, status, model, created_at, feedback, error } = message
  const pieces = [`## ${seq}\\. ${roleNames[role]}${place} · ${created_at}\n\n`]
  const facts = [
    ...(role === 'assistant' && model !== null ? [escapeMarks(model)] : []),
    ...(status === 'completed' ? [] : [status]),
    ...(message.total_tokens === null ? [] : [`${message.total_tokens} tokens`]),
    ...(message.cost_usd === null ? [] : [`${message.cost_usd} USD`]),
    ...(error === null ? [] : [`error: ${escapeMarks(error.code)}`]),
  ]
  if (facts.length > 0) pieces.push(`${facts.join(' · ')}\n\n`)
  const parts = message.parts.length > 0 ? message.parts : [{ kind: 'text', text: message.content } satisfies Part]
  for (const part of parts) {
    const { kind, text } = part
    if (kind === 'tool_call') pieces.push(...describeCall(part, role === 'tool'))
    else if (text !== '') pieces.push(kind === 'reasoning' ? 'Reasoning:\n\n' : '', `${fence(text)}\n`)
  }
  if (feedback !== null) {
    pieces.push(`Feedback: ${feedback.rating > 0 ? 'good' : 'bad'}\n\n`)
    if (feedback.comment !== null && feedback.comment !== '') pieces.push(`${fence(feedback.comment)}\n`)
  }
  return pieces.join('')
}

/** @param isAnswer it stands in a message that answers calls of the reply before, and holds none */
function describeCall({ text, name = '', output, error }: Partial<Part>, isAnswer: boolean): string[] {
  const pieces = isAnswer ? [] : [`Tool call: ${escapeMarks(name)}\n\n`, `${fence(text ?? '')}\n`]
  if (output !== undefined) {
    const words = typeof output === 'string' ? output : JSON.stringify(output, null, 2)
    pieces.push(`Answer of ${escapeMarks(name)}:\n\n`, `${fence(words)}\n`)
  }
  if (error !== undefined) {
    pieces.push(`Error of ${escapeMarks(name)} (${escapeMarks(error.code)}):\n\n`, `${fence(error.message)}\n`)
  }
  return pieces
}

/** A closing fence has at least as many marks as the opening one (CommonMark 0.31, 4.5), and no text has as many. */
export function fence(text: string): string {
  const [backticks, tildes] = [longestRun(text, /`+/g), longestRun(text, /~+/g)]
  const marks = backticks <= tildes ? '`'.repeat(Math.max(3, backticks + 1)) : '~'.repeat(Math.max(3, tildes + 1))
  return `${marks}text\n${text}${text.endsWith('\n') ? '' : '\n'}${marks}\n`
}

function longestRun(text: string, run: RegExp): number {
  let longest = 0
  for (const [marks] of text.matchAll(run)) longest = Math.max(longest, marks.length)
  return longest
}

/** One line that means itself, in the middle of a line: other marks mean something only where a line begins. */
function escapeMarks(words: string): string {
  return words
    .replace(/\s+/g, ' ')
    .trim()
    .replace(/[\\`*_{}[\]<>#!|&~$]/g, '\\$&')
}
