/** The operator's check, `npm run verify`, as a program against a gateway: it passes, and it can fail. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const script = new URL('../../scripts/verify-persistence.ts', import.meta.url).pathname

async function verify(url: string): Promise<{ code: number; output: string }> {
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [script, url], { env: { PATH: process.env.PATH } })
    return { code: 0, output: stdout }
  } catch (error) {
    const { code, stdout } = error as { code: number; stdout: string }
    return { code, output: stdout }
  }
}

for (const database of databases()) {
  test(`on ${database}, save, read, update, list, complete and filter are verified from outside`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ tokens: 30 }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url } })
    const { code, output } = await verify(gateway.url)
    t.equal(code, 0, output)
    for (const word of ['save', 'read', 'update', 'list', 'complete', 'filter']) {
      t.match(output, new RegExp(`^ok +\\d+\\. ${word}: `, 'm'))
    }

    upstream.answer(() => say({ tokens: 0 }))
    const empty = await verify(gateway.url)
    t.equal(empty.code, 1, 'a reply without a word does not pass')
    t.match(empty.output, /^FAIL \d+\. complete: /m)
  })
}

test('a gateway that is not there fails the check', async (t) => {
  const { code, output } = await verify('http://127.0.0.1:9')
  t.equal(code, 1)
  t.match(output, /^FAIL /m)
})
