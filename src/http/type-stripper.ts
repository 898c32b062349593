/**
 * A thread that takes the types out of files and ends: the paths come in as its data, the texts go out as one message. Each
 * type becomes as many spaces, so lines and columns of an error in a browser are those of the source. A file that cannot
 * be read, or holds more than types beyond JavaScript, ends it with an error, which page.ts gives to whoever waits.
 */
import { readFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { parentPort, workerData } from 'node:worker_threads'

const paths = workerData as readonly string[]
parentPort?.postMessage(paths.map((path) => stripTypeScriptTypes(readFileSync(path, 'utf8'))))
