// The microphone, over /v1/realtime.

const RATE = 24000;
const TRANSCRIPTION = "conversation.item.input_audio_transcription";
const COMMIT_EMPTY = "input_audio_buffer_commit_empty"; // the end came right behind a turn's

/** Ask for the microphone; throws an Error whose message is for the user. */
export async function openMicrophone() {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the microphone only to pages from https:// or localhost. Files work here too.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Error("The microphone was not allowed. Allow it for this page.");
    if (error.name === "NotFoundError") throw new Error("There is no microphone.");
    throw new Error(`The microphone cannot be used: ${error.message}`);
  }
}

/** One recording. `onText(itemId, committed, whole)`, `onLevel(0..1)` and `onError(message)` tell how it goes. */
export class Live {
  constructor({ key, language, onText, onLevel, onError }) {
    Object.assign(this, { key, language, onText, onLevel, onError });
    this.texts = new Map(); // committed text of each item
    this.ended = new Promise((resolve) => (this.end = resolve));
  }

  async start(microphone) {
    this.microphone = microphone;
    try {
      await this.#listen();
      await this.#connect();
    } catch (error) {
      this.#release();
      throw error;
    }
    this.node.port.onmessage = ({ data }) => this.#heard(data);
  }

  /** No more audio comes; resolves when all of it is transcribed. */
  async stop() {
    if (this.socket.readyState === WebSocket.OPEN) this.node.port.postMessage(null);
    else this.end();
    await this.ended;
    this.#release();
  }

  async #listen() {
    try {
      this.context = new AudioContext({ sampleRate: RATE });
      this.source = this.context.createMediaStreamSource(this.microphone);
    } catch {
      this.context = new AudioContext(); // Firefox does not resample a microphone
      this.source = this.context.createMediaStreamSource(this.microphone);
    }
    await this.context.audioWorklet.addModule("page/recorder.js");
    this.node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    this.source.connect(this.node);
  }

  #connect() {
    const url = new URL("v1/realtime?intent=transcription", document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = this.key ? ["realtime", `openai-insecure-api-key.${this.key}`] : ["realtime"];
    return new Promise((resolve, reject) => {
      try {
        this.socket = new WebSocket(url, protocols);
      } catch {
        reject(new Error("This key has characters that a browser cannot send for live text. Files work."));
        return;
      }
      this.socket.onmessage = ({ data }) => this.#told(JSON.parse(data), resolve);
      this.socket.onclose = ({ code }) => {
        reject(new Error("The server did not accept the connection."));
        if (!this.released) this.onError(reasonOf(code));
        this.end();
      };
    });
  }

  #told(event, ready) {
    switch (event.type) {
      case "session.created":
        this.#send({ type: "session.update", session: this.#session() });
        break;
      case "session.updated":
        ready();
        break;
      case "qwen3asr.partial":
        this.texts.set(event.item_id, event.committed);
        this.onText(event.item_id, event.committed, event.text);
        break;
      case `${TRANSCRIPTION}.completed`:
        this.texts.set(event.item_id, event.transcript);
        this.onText(event.item_id, event.transcript, event.transcript);
        break;
      case `${TRANSCRIPTION}.failed`:
        this.onError(event.error.message);
        break;
      case "input_audio_buffer.cleared":
        this.end(); // the server works on events in turn: all before it is told
        break;
      case "error":
        if (event.error.code !== COMMIT_EMPTY) this.onError(event.error.message);
        break;
    }
  }

  #session() {
    const format = { type: "audio/pcm", rate: this.context.sampleRate };
    const transcription = this.language ? { language: this.language } : {};
    return { type: "transcription", include: ["qwen3asr.partial"], audio: { input: { format, transcription } } };
  }

  #heard(samples) {
    if (samples === null) {
      this.#send({ type: "input_audio_buffer.commit" });
      this.#send({ type: "input_audio_buffer.clear" });
      return;
    }
    const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    this.onLevel(Math.sqrt(peak / 32767));
    this.#send({ type: "input_audio_buffer.append", audio: base64(new Uint8Array(samples.buffer)) });
  }

  #send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  #release() {
    if (this.released) return;
    this.released = true;
    for (const track of this.microphone.getTracks()) track.stop();
    this.context?.close();
    this.socket?.close();
  }
}

function base64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

function reasonOf(code) {
  if (code === 1001) return "The server is about to stop. Record again in a moment.";
  if (code === 1011) return "The server failed. Record again.";
  return "The connection to the server broke. What is written stays.";
}
