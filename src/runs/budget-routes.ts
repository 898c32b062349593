/** What the caller has spent today, and may. */
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { type Budgets, DayUsage } from './budgets.ts'

export function registerBudgets(app: Server, budgets: Budgets): void {
  app.get(
    '/me/usage',
    { schema: { tags: ['runs'], response: { 200: DayUsage, ...problemResponses } } },
    async (request) => budgets.readUsage(request.owner),
  )
}
