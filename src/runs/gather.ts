/**
 * Questions of the same few milliseconds, asked of the database with one statement. A thousand viewers that come back at
 * once then cost it a few dozen statements, and nobody waits in line behind the others for a place in the pool.
 *
 * It owns the questions that are not sent yet. Each settles with its statement: when the database does not answer, all
 * who asked are told so. A process that dies leaves nothing.
 */

export interface GatherOptions<Question, Answer> {
  /** Equal questions have the same one, and share an answer. */
  readonly keyOf: (question: Question) => string
  /** @returns the answers by key; a question that has none is answered with undefined */
  readonly ask: (questions: readonly Question[]) => Promise<ReadonlyMap<string, Answer>>
  /** How long a question waits for others to go with it. */
  readonly gatherMs: number
}

/** Questions in one statement. */
const questionsPerStatementMax = 100

export function createGather<Question, Answer>({ keyOf, ask, gatherMs }: GatherOptions<Question, Answer>) {
  type Waiting = PromiseWithResolvers<Answer | undefined> & { readonly question: Question }
  let gathered = new Map<string, Waiting>()

  function send(): void {
    const waiting = [...gathered]
    gathered = new Map()
    for (let start = 0; start < waiting.length; start += questionsPerStatementMax) {
      void settle(waiting.slice(start, start + questionsPerStatementMax)) // settles every question, and throws nothing
    }
  }

  async function settle(waiting: readonly (readonly [string, Waiting])[]): Promise<void> {
    try {
      const answers = await ask(waiting.map(([, { question }]) => question))
      for (const [key, { resolve }] of waiting) resolve(answers.get(key))
    } catch (error) {
      for (const [, { reject }] of waiting) reject(error)
    }
  }

  return (question: Question): Promise<Answer | undefined> => {
    const key = keyOf(question)
    const known = gathered.get(key)
    if (known !== undefined) return known.promise
    const waiting = { question, ...Promise.withResolvers<Answer | undefined>() }
    gathered.set(key, waiting)
    if (gathered.size === 1) setTimeout(send, gatherMs)
    return waiting.promise
  }
}
