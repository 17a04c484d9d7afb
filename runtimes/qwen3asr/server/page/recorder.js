// Runs beside the page's own thread: the microphone as 16-bit samples, a tenth of a second at a time.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.port.onmessage = () => {
      this.flush();
      this.port.postMessage(null); // the last one
    };
  }

  process(inputs) {
    for (const value of inputs[0][0] ?? []) {
      this.samples[this.filled++] = Math.max(-1, Math.min(1, value)) * 32767;
      if (this.filled === this.samples.length) this.flush();
    }
    return true;
  }

  flush() {
    if (this.filled) this.port.postMessage(this.samples.slice(0, this.filled));
    this.filled = 0;
  }
}

registerProcessor("recorder", Recorder);
