/**
 * A site of its own beside the gateway, as a browser sees it, with a program that is bundled from a source of the test.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { build } from 'esbuild'
import type { Test } from 'tap'

export interface Site {
  /** Another origin than the gateway, of the same site: its cookie goes along. Without a slash at its end. */
  readonly near: string
  /** Of another site: browsers of these days keep no cookie of the gateway there. */
  readonly far: string
}

/** @param program TypeScript, as if it stood in this folder */
export async function startSite(t: Pick<Test, 'teardown'>, program: string): Promise<Site> {
  const { outputFiles } = await build({
    stdin: { contents: program, resolveDir: import.meta.dirname, loader: 'ts' },
    bundle: true,
    format: 'iife',
    target: 'es2022',
    define: { 'process.env.NODE_ENV': '"development"' },
    write: false,
  })
  const script = outputFiles[0]?.text ?? ''
  const server = createServer(({ url }, response) => {
    const isScript = url === '/program.js'
    response.setHeader('content-type', `text/${isScript ? 'javascript' : 'html'}; charset=utf-8`)
    response.end(
      isScript ? script : '<!doctype html><title>A site</title><main></main><script src="/program.js"></script>',
    )
  })
  await new Promise<void>((resolve) => server.listen(0, resolve))
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  const { port } = server.address() as AddressInfo
  // Two names of one machine are two sites; another port is another origin.
  return { near: `http://127.0.0.1:${port}`, far: `http://localhost:${port}` }
}
