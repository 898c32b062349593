/**
 * Questions that come while one is being asked go together in the next. A lone question waits for nobody; under load a
 * statement carries as many as came meanwhile, so the cost of a round trip is shared by all of them, and no clock has to
 * be tuned. What was asked before a statement began is never answered by it: an answer is as fresh as the question.
 *
 * It owns the questions that are not sent yet. Each settles with its batch; when that fails, all in it are told so. A batch
 * that takes longer than `lateMs` does not hold up the next one, so that a question is not kept waiting for the limits of
 * two statements. A process that dies leaves nothing.
 */
import { Problem } from '../errors.ts'

export interface BatchOptions<Question, Answer> {
  /** Equal questions have the same one, and share an answer. */
  readonly keyOf: (question: Question) => string
  /** @returns the answers by key; a question that has none is answered with undefined */
  readonly ask: (questions: readonly Question[]) => Promise<ReadonlyMap<string, Answer>>
  /** In one batch. */
  readonly questionsMax: number
}

const waitingMax = 5000
const lateMs = 250

/** @returns asks; rejects as `ask` does, or with Problem `db_unavailable` when `waitingMax` questions wait already */
export function createBatch<Question, Answer>({ keyOf, ask, questionsMax }: BatchOptions<Question, Answer>) {
  type Waiting = PromiseWithResolvers<Answer | undefined> & { readonly question: Question }
  const waiting = new Map<string, Waiting>()
  // The batch that the next one waits for.
  let current: object | undefined
  let scheduled = false
  let lateTimer: NodeJS.Timeout | undefined

  function schedule(): void {
    if (scheduled || waiting.size === 0) return
    if (current === undefined) {
      scheduled = true
      // Behind all that this turn of the event loop still reads from its sockets.
      setImmediate(send)
    } else {
      lateTimer ??= setTimeout(send, lateMs)
    }
  }

  function send(): void {
    scheduled = false
    clearTimeout(lateTimer)
    lateTimer = undefined
    const batch = [...waiting].slice(0, questionsMax)
    for (const [key] of batch) waiting.delete(key)
    if (batch.length > 0) void settle(batch) // settles every question, and throws nothing
    schedule()
  }

  async function settle(batch: readonly (readonly [string, Waiting])[]): Promise<void> {
    current = batch
    try {
      const answers = await ask(batch.map(([, { question }]) => question))
      for (const [key, { resolve }] of batch) resolve(answers.get(key))
    } catch (error) {
      for (const [, { reject }] of batch) reject(error)
    } finally {
      if (current === batch) current = undefined
      schedule()
    }
  }

  return (question: Question): Promise<Answer | undefined> => {
    const key = keyOf(question)
    const known = waiting.get(key)
    if (known !== undefined) return known.promise
    if (waiting.size >= waitingMax) {
      return Promise.reject(
        new Problem('db_unavailable', 'Too many questions wait for the database.', { retryAfterSeconds: 2 }),
      )
    }
    const one = { question, ...Promise.withResolvers<Answer | undefined>() }
    waiting.set(key, one)
    schedule()
    return one.promise
  }
}
