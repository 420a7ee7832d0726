// A server that parks: it has layby ask a service, and answers when that has. Node alone is needed.
//
//   LAYBY_PLANS_SECRET=… node server.js /run/app.sock /run/layby/plans.sock https://price.example/
const crypto = require('node:crypto')
const http = require('node:http')

const [listen, plans, service] = process.argv.slice(2)
const secret = process.env.LAYBY_PLANS_SECRET

// From docs/plans.md, word for word.
const sha256 = (data) => crypto.createHash('sha256').update(data).digest('hex')
const seen = new Map() // One process. With several, keep it where all of them look.

// The resume in a request whose whole body is in hand, or null if it is not the gateway's.
function resumed (request, body) {
  const { 'layby-id': id, 'layby-expires': expires, 'layby-signature': signature } = request.headers
  if (!id || !expires || !signature || seen.has(id)) return null
  const now = Date.now() / 1000
  if (!(Number(expires) >= now)) return null
  let resume
  try { resume = JSON.parse(body) } catch { return null }
  const state = sha256(String(resume.state))
  const lines = ['layby-resume-v1', id, request.url, state, sha256(body), expires]
  const text = lines.map((line) => line + '\n').join('')
  const right = Buffer.from('v1=' + crypto.createHmac('sha256', secret).update(text).digest('hex'))
  const given = Buffer.from(signature)
  if (given.length !== right.length || !crypto.timingSafeEqual(given, right)) return null
  for (const [old, until] of seen) if (until < now) seen.delete(old)
  seen.set(id, Number(expires))
  return resume
}

// Answers with a plan: the request is parked, and comes back to /.layby/ and `path`.
function park (request, response, fetches, path, state) {
  response.setHeader('Content-Type', 'application/vnd.layby.plan+json')
  response.setHeader('Layby-Token', request.headers['layby-token'])
  response.end(JSON.stringify({ fetches, resume: { path, state: JSON.stringify(state) } }))
}

// Runs a plan and waits for its results here.
async function wait (fetches) {
  const headers = { Authorization: `Bearer ${secret}`, 'Content-Type': 'application/json' }
  const options = { socketPath: plans, path: '/v1/fetch', method: 'POST', headers }
  return new Promise((resolve, reject) => {
    const asked = http.request(options, (answer) => {
      const pieces = []
      answer.on('data', (piece) => pieces.push(piece)).on('error', reject)
      answer.on('end', () => resolve(JSON.parse(Buffer.concat(pieces)).results))
    })
    asked.on('error', reject).end(JSON.stringify({ fetches }))
  })
}

const price = (result) => result.error ? `no price: ${result.error}` : `costs ${result.body}`

async function answer (request, response, body) {
  if (request.url.startsWith('/.layby/')) {
    const resume = resumed(request, body)
    if (!resume) return response.writeHead(403).end()
    const { item } = JSON.parse(resume.state)
    return response.end(`${item} ${price(resume.results[0])}\n`)
  }
  const item = new URL(request.url, 'http://shop').searchParams.get('item') || 'nothing'
  const fetches = [{ url: `${service}?item=${encodeURIComponent(item)}`, timeout: 5 }]
  // HEAD has no body for a plan, and without a token nobody would take it for one.
  if (request.method === 'HEAD' || !request.headers['layby-token'] || request.url.startsWith('/wait')) {
    const [result] = await wait(fetches)
    return response.end(`${item} ${price(result)}\n`)
  }
  park(request, response, fetches, 'price', { item })
}

http.createServer((request, response) => {
  const pieces = []
  request.on('data', (piece) => pieces.push(piece))
  request.on('end', () => answer(request, response, Buffer.concat(pieces)).catch((error) => {
    console.error(error)
    response.writeHead(500).end()
  }))
}).listen(listen, () => console.log('listening'))
