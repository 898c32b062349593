/** The transcript: what it holds, and where it ends. */
import { test } from 'tap'
import type { GeneratorInput } from '../../src/sessions/generators.ts'
import type { Message, Session } from '../../src/sessions/model.ts'
import { transcript } from '../../src/sessions/transcript.ts'

const bytesMax = 1_000_000

function write(title: string | null, messages: readonly Partial<Message>[]): Promise<string> {
  const input = {
    session: { title } as Session,
    async *readMessages() {
      for (const message of messages) yield { status: 'completed', model: null, content: '', ...message } as Message
    },
    signal: new AbortController().signal,
  } satisfies GeneratorInput
  return transcript.generate(input) as Promise<string>
}

test('it holds who said what, and what was not said to its end', async (t) => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hi\n\n**there**' },
    { role: 'assistant', model: 'demo', content: 'Hel', status: 'stopped' },
    { role: 'assistant', status: 'failed' },
  ] as const
  const text = await write('  A\n title ', messages)
  t.equal(
    text,
    [
      '# A title\n',
      '## System\n\nBe brief.\n',
      '## User\n\nHi\n\n**there**\n',
      '## Assistant (demo)\n\nHel\n\n*stopped*\n',
      '## Assistant\n\n*failed*\n',
    ].join('\n'),
  )
  t.equal(await write('  A\n title ', messages), text, 'the same every time')
  t.equal(await write(null, []), '# Untitled\n')
  t.equal(await write(' ', []), '# Untitled\n')
})

test('it ends at its limit, between two characters, and says so', async (t) => {
  const long = { role: 'user', content: '👩‍👩‍👧‍👦é'.repeat(10_000) } as const
  const text = await write('T', [long, long, long, long, long, long])
  t.match(text, /\n\n\*The transcript ends here, [^\n]*\*\n$/)
  t.ok(Buffer.byteLength(text) <= bytesMax)
  t.ok(Buffer.byteLength(text) > bytesMax - 10, 'and no earlier')
  t.ok(text.isWellFormed())
  let asked = 0
  const input = {
    session: { title: null } as Session,
    async *readMessages() {
      for (; asked < 100; asked += 1) yield { ...long, status: 'completed', model: null } as Message
    },
    signal: new AbortController().signal,
  }
  await transcript.generate(input)
  t.ok(asked < 10, 'the rest is not even read')
  t.equal(
    await write('T', [{ role: 'user', content: 'x'.repeat(bytesMax - 200) }]).then((whole) =>
      whole.includes('ends here'),
    ),
    false,
  )
})
