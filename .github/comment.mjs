// A report as the one comment of a pull request: found again by its first line, replaced, never
// doubled.
//
//   node comment.mjs REPORT.md
//
// Reads GITHUB_TOKEN, GITHUB_API_URL, GITHUB_REPOSITORY and PULL_REQUEST (a number) from the
// environment. Only comments of bots are touched: a person may quote the marker. Without the right
// to write, as for a pull request from a fork, it says so and ends well.
import { readFileSync } from "node:fs";

const ATTEMPTS = 3;
const PAUSE_MS = 1000;
const { GITHUB_TOKEN, GITHUB_API_URL = "https://api.github.com", GITHUB_REPOSITORY, PULL_REQUEST } =
  process.env;

class Refused extends Error {}

async function call(method, url, body) {
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(url, {
      method,
      headers: {
        accept: "application/vnd.github+json",
        authorization: `Bearer ${GITHUB_TOKEN}`,
        "user-agent": "llmops-prompts",
        "x-github-api-version": "2022-11-28",
      },
      body: body === undefined ? undefined : JSON.stringify({ body }),
    });
    if (answer.status >= 500 && attempt < ATTEMPTS) {
      await new Promise((resolve) => setTimeout(resolve, attempt * PAUSE_MS));
      continue;
    }
    const text = await answer.text();
    if (answer.status === 403 && answer.headers.get("x-ratelimit-remaining") !== "0") {
      throw new Refused(text);
    }
    if (!answer.ok && !(answer.status === 404 && method !== "GET")) {
      throw new Error(`${method} ${url}: HTTP ${answer.status}: ${text.slice(0, 300)}`);
    }
    return { found: answer.status !== 404, body: text ? JSON.parse(text) : null, links: answer.headers.get("link") };
  }
}

async function earlier(comments, marker) {
  const found = [];
  for (let url = `${comments}?per_page=100`; url; ) {
    const page = await call("GET", url);
    found.push(...page.body.filter((one) => one.user?.type === "Bot" && one.body?.startsWith(marker)));
    url = page.links?.match(/<([^>]+)>;\s*rel="next"/)?.[1];
  }
  return found;
}

async function upsert(report) {
  if (!/^\d+$/.test(PULL_REQUEST ?? "") || !GITHUB_REPOSITORY || !GITHUB_TOKEN) {
    throw new Error("GITHUB_TOKEN, GITHUB_REPOSITORY and PULL_REQUEST (a number) are wanted");
  }
  const marker = report.split("\n", 1)[0];
  if (!marker.startsWith("<!--")) throw new Error("the report's first line is no marker");
  const issues = `${GITHUB_API_URL}/repos/${GITHUB_REPOSITORY}/issues`;
  const comments = `${issues}/${PULL_REQUEST}/comments`;
  const [kept, ...doubles] = await earlier(comments, marker);
  for (const one of doubles) await call("DELETE", `${issues}/comments/${one.id}`);
  // Whoever deleted it meanwhile wants it gone from there, not the report unsaid.
  const replaced = kept && (await call("PATCH", `${issues}/comments/${kept.id}`, report)).found;
  if (replaced) return "replaced";
  const made = await call("POST", comments, report);
  if (!made.found) throw new Error(`there is no pull request ${PULL_REQUEST}`);
  return "made";
}

try {
  console.log(`the comment was ${await upsert(readFileSync(process.argv[2], "utf8"))}`);
} catch (error) {
  if (error instanceof Refused) {
    console.log("no right to comment here; the report is in the job's summary");
  } else {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}
