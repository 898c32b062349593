/**
 * The artifact `transcript`: what was said in a session, as Markdown, in the order in which it was stored, all branches.
 * Only words that people and models wrote to each other: no reasoning, no tools, no sources. The same messages always make
 * the same text. It ends at `transcriptBytesMax`, and says so when there was more.
 */
import type { ArtifactGenerator } from './generators.ts'
import { type Message, roleNames, untitled } from './model.ts'

const transcriptBytesMax = 1_000_000
const cutNote = '*The transcript ends here, because it would become too large. The conversation goes on.*\n'

export const transcript: ArtifactGenerator = {
  name: 'transcript',
  contentType: 'text/markdown',
  async generate({ session, readMessages }) {
    let text = `# ${session.title?.trim().replace(/\s+/g, ' ') || untitled}\n`
    let bytesLeft = transcriptBytesMax - Buffer.byteLength(text) - Buffer.byteLength(cutNote) - 2
    for await (const message of readMessages()) {
      if (message.role === 'tool') continue
      const block = `\n${toMarkdown(message)}`
      const bytes = Buffer.byteLength(block)
      if (bytes > bytesLeft) return `${text}${cut(block, bytesLeft)}\n\n${cutNote}`
      bytesLeft -= bytes
      text += block
    }
    return text
  },
}

function toMarkdown({ role, model, status, content }: Message): string {
  const heading = `## ${roleNames[role]}${role === 'assistant' && model !== null ? ` (${model})` : ''}\n`
  const words = content === '' ? '' : `\n${content}\n`
  return `${heading}${words}${status === 'completed' ? '' : `\n*${status}*\n`}`
}

/** The longest beginning of `text` that takes no more than `bytesMax`, and ends between two characters. */
function cut(text: string, bytesMax: number): string {
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(Math.max(0, bytesMax)))
  return text.slice(0, read)
}
