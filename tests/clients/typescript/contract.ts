// What an application does with the generated client, from the sign-up to the account: the same steps as in contract.py.
// node dist/contract.js URL TOKEN ADDRESS prints one JSON object, from the name of a step to what came of it.

import { createClient } from "./client/client/index.js";
import {
  getRegistration,
  listMailboxMessages,
  register,
  searchRegistrations,
  verifyEmail,
  type Problem,
} from "./client/index.js";

const [url, token, email] = process.argv.slice(2);
if (url === undefined || token === undefined || email === undefined) {
  throw new Error("usage: contract.js URL TOKEN ADDRESS");
}
const client = createClient({ baseUrl: url });
const operator = createClient({ baseUrl: url, headers: { Authorization: `Bearer ${token}` } });
const steps: Record<string, unknown> = {};

function problem(found: Problem | undefined): string | undefined {
  return found?.type.split(":").at(-1);
}

async function eventually<Found>(look: () => Promise<Found | undefined>): Promise<Found> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > deadline) throw new Error(`not within a minute: ${look}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const headers = { "Idempotency-Key": "typescript-contract-0001" };
const body = { email, name: "Ada Lovelace", password: "correct horse battery", locale: "en" };

const first = await register({ client, body, headers });
steps["register"] = [first.response?.status, first.data?.status];
const registration_id = first.data?.registration_id;
if (registration_id === undefined) throw new Error("no registration");
const path = { registration_id };

const again = await register({ client, body, headers });
steps["the same key again"] = [
  again.data?.registration_id === registration_id,
  again.response?.headers.get("Idempotent-Replayed"),
];

const malformed = await register({ client, body: { ...body, email: "nobody" } });
steps["no address"] = [malformed.response?.status, problem(malformed.error), malformed.error?.errors?.[0]?.field];

const position = Number(first.response?.headers.get("Registrar-Position"));
const pending = await getRegistration({ client, path, query: { min_position: position, wait: 10_000 } });
steps["look"] = [pending.data?.status, pending.data?.attempts_left, pending.data?.email !== email];

const code = await eventually(async () => {
  const mails = await listMailboxMessages({ client, query: { to: email } });
  return mails.data?.[0]?.text.match(/^\s*(\d{6})\s*$/m)?.[1];
});
const wrong = await verifyEmail({ client, path, body: { code: code === "000000" ? "000001" : "000000" } });
steps["a wrong code"] = [wrong.response?.status, problem(wrong.error), wrong.error?.attempts_left];

const right = await verifyEmail({ client, path, body: { code } });
steps["the code"] = [right.response?.status, right.data !== undefined && ["VERIFIED", "ACTIVE"].includes(right.data.status)];

steps["in the end"] = await eventually(async () => {
  const now = await getRegistration({ client, path });
  return now.data?.status === "ACTIVE" ? [now.data.status, now.data.verified_at !== null] : undefined;
});

const unknown = await getRegistration({ client, path: { registration_id: "00000000-0000-7000-8000-000000000000" } });
steps["an unknown id"] = [unknown.response?.status, problem(unknown.error)];

const stranger = await searchRegistrations({ client, query: { email } });
steps["no operator"] = [stranger.response?.status, problem(stranger.error)];

const found = await searchRegistrations({ client: operator, query: { email } });
steps["an operator"] = found.data?.items.map((one) => [one.registration_id === registration_id, one.name, one.status]);

console.log(JSON.stringify(steps));
