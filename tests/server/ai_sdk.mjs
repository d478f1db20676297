// Asks a model with the AI SDK, and prints what it gave as JSON: `ai_sdk.mjs VERSION DIALECT ADDRESS KEY`.
// VERSION is the end of the packages' names ("" for the newest, "-5" for AI SDK 5), as `make clients`
// installs them. DIALECT is chat, completions of @ai-sdk/openai, responses or messages.
const [version, dialect, address, key] = process.argv.slice(2);
const { streamText, tool, stepCountIs, isStepCount, jsonSchema } = await import(`ai${version}`);

const factories = {
  chat: async () => {
    const { createOpenAICompatible } = await import(`@ai-sdk/openai-compatible${version}`);
    const made = createOpenAICompatible({ name: "qwen", baseURL: `${address}/v1`, apiKey: key, includeUsage: true });
    return made("qwen3-coder-plus");
  },
  completions: async () => {
    const { createOpenAI } = await import(`@ai-sdk/openai${version}`);
    return createOpenAI({ baseURL: `${address}/v1`, apiKey: key }).chat("qwen3-coder-plus");
  },
  responses: async () => {
    const { createOpenAI } = await import(`@ai-sdk/openai${version}`);
    return createOpenAI({ baseURL: `${address}/v1`, apiKey: key }).responses("qwen3-coder-plus");
  },
  messages: async () => {
    const { createAnthropic } = await import(`@ai-sdk/anthropic${version}`);
    return createAnthropic({ baseURL: `${address}/v1`, apiKey: key })("qwen3-coder-plus");
  },
};

const inputs = [];
const note = tool({
  description: "Notes a word.",
  inputSchema: jsonSchema({ type: "object", properties: { word: { type: "string" } } }),
  execute: async (input) => {
    inputs.push(input);
    return `noted ${input.word ?? "nothing"}`;
  },
});
const errors = [];
const result = streamText({
  model: await factories[dialect](),
  prompt: "Hello",
  tools: { note },
  stopWhen: (stepCountIs ?? isStepCount)(4),
  maxRetries: 0,
  onError: ({ error }) => errors.push(String(error)),
});
await result.consumeStream();
const steps = errors.length ? [] : await result.steps;
const text = errors.length ? "" : await result.text;
console.log(JSON.stringify({ errors, inputs, text, finishes: steps.map((step) => step.finishReason) }));
