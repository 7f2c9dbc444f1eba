// Better Auth on node:http, its own server API called directly; passwords by @node-rs/argon2 in libuv's threads.
import { createServer } from "node:http";
import { Algorithm, hash } from "@node-rs/argon2";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import pg from "pg";

const hashing = process.env.PEER_HASHING === "argon2id";
const options = { algorithm: Algorithm.Argon2id, memoryCost: 19456, timeCost: 2, parallelism: 1 };
const auth = betterAuth({
  baseURL: "http://localhost",
  secret: "0123456789abcdef0123456789abcdef",
  database: new pg.Pool({ max: 8 }),
  telemetry: { enabled: false },
  emailAndPassword: {
    enabled: true,
    autoSignIn: false,
    password: { hash: async (password) => (hashing ? hash(password, options) : "unhashed") },
  },
});
await (await getMigrations(auth.options)).runMigrations();

const server = createServer(async (request, response) => {
  let text = "";
  for await (const chunk of request) text += chunk;
  const { email, name, password = "correct horse battery" } = JSON.parse(text);
  let status = 202, body;
  try {
    const { user } = await auth.api.signUpEmail({ body: { email, name, password } });
    body = JSON.stringify({ registration_id: user.id, status: "PENDING" });
  } catch (error) {
    status = 500;
    body = JSON.stringify({ error: String(error) });
  }
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
  response.end(body);
});
server.listen(0, "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
