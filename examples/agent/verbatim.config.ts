/**
 * A site's own pipeline as an agent: it looks up the site's documents, lets a model say what is still missing, looks once
 * more, and answers from what it found. README.md has the commands to try it.
 *
 * It keeps nothing between two replies, and what it yields is all it has to care about: words, sources and the document at
 * the end are logged, shown and stored by the gateway. When its signal is aborted, the model that it asks throws, and so
 * does it.
 */
import type { Agent, AgentEvent } from '../../src/upstream/agent.ts'
import type { UpstreamMessage } from '../../src/upstream/upstream.ts'

interface Page {
  readonly title: string
  readonly url: string
  readonly text: string
}

/** In its place: a search of your own. */
const pages: readonly Page[] = [
  {
    title: 'Returns',
    url: 'https://shop.example/help/returns',
    text: 'An order can be returned within 30 days. The label for the parcel is in the account, under orders. Refunds follow within 5 days.',
  },
  {
    title: 'Refunds',
    url: 'https://shop.example/help/refunds',
    text: 'A refund goes to the card that paid. Vouchers are refunded as vouchers. Shipping is refunded when the whole order is returned.',
  },
  {
    title: 'Shipping',
    url: 'https://shop.example/help/shipping',
    text: 'Parcels leave the same day when they are ordered before noon. Delivery takes two days, abroad five.',
  },
  {
    title: 'Vouchers',
    url: 'https://shop.example/help/vouchers',
    text: 'A voucher is good for three years. It cannot be paid out, and several can be used for one order.',
  },
]

/** Pages of one round. */
const foundMax = 2

const handbook: Agent = {
  id: 'handbook',
  async *reply({ messages }, context, signal): AsyncGenerator<AgentEvent, void, undefined> {
    const question = messages.findLast(({ role }) => role === 'user')?.content ?? ''

    yield { type: 'progress', phase: 'searching', round: 1 }
    const found = search(question, [])
    yield* found.map(toSource)

    // Round two: what a model would look for next. What it uses is counted for the run, as all that is asked.
    yield { type: 'progress', phase: 'searching', round: 2 }
    const missing = await context.askText({
      messages: [
        { role: 'system', content: `Name in a few words what is missing to answer the question.\n\n${quote(found)}` },
        { role: 'user', content: question },
      ],
      maxOutputTokens: 50,
    })
    signal.throwIfAborted()
    const more = search(`${question} ${missing}`, found)
    yield* more.map(toSource)

    yield { type: 'progress', phase: 'answering' }
    const all = [...found, ...more]
    const system: UpstreamMessage = { role: 'system', content: `Answer from these pages only.\n\n${quote(all)}` }
    for await (const event of context.ask({ messages: [system, ...messages] })) {
      if (event.type === 'text' || event.type === 'finish') yield event
    }

    yield {
      type: 'artifact',
      name: 'pages',
      contentType: 'text/markdown',
      body: all.map(({ title, url }) => `- [${title}](${url})\n`).join(''),
    }
  },
}

export default { agents: [handbook] }

/** The pages that share the most words with `query`, without those that share none. */
function search(query: string, known: readonly Page[]): readonly Page[] {
  const words = new Set(wordsOf(query))
  return pages
    .filter((page) => !known.includes(page))
    .map((page) => ({
      page,
      hits: new Set(wordsOf(`${page.title} ${page.text}`).filter((word) => words.has(word))).size,
    }))
    .filter(({ hits }) => hits > 0)
    .sort((a, b) => b.hits - a.hits)
    .slice(0, foundMax)
    .map(({ page }) => page)
}

/** Words of four letters and more, without the plural. */
function wordsOf(text: string): readonly string[] {
  return (text.toLowerCase().match(/\p{L}{4,}/gu) ?? []).map((word) => word.replace(/s$/, ''))
}

function toSource({ url, title }: Page): AgentEvent {
  return { type: 'source', url, title }
}

function quote(found: readonly Page[]): string {
  return found.map(({ title, text }) => `## ${title}\n${text}\n`).join('\n')
}
