// Where a question is written: Enter sends, Shift+Enter breaks the line, Esc stops, Ctrl+K or / comes here.
const draft = () => `draft of ${location.pathname}${location.search}`;
export default {
  template: `
    <form class="composer" @submit.prevent="send">
      <label v-if="takesFiles" class="round attach" title="Add a document to this conversation">
        <svg viewBox="0 0 20 20" aria-hidden="true"><path d="m13.6 6.2-5.9 5.9a1.8 1.8 0 0 0 2.6 2.6l6-6a3.4 3.4 0 0 0-4.9-4.9l-6.2 6.2a5 5 0 0 0 7.1 7.1l4.3-4.3" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/></svg>
        <input type="file" class="hidden-file" multiple data-upload aria-label="Add a document to this conversation"
          @uploaded="$emit('file', $event.detail)">
      </label>
      <textarea ref="box" v-model="text" rows="1" :placeholder="placeholder" aria-label="Your question" enterkeyhint="send"
        maxlength="100000" @keydown.enter="enter" @input="grow"></textarea>
      <button v-if="busy" type="button" class="round stop" aria-label="Stop the answer" title="Stop (Esc)" @click="$emit('stop')">
        <svg viewBox="0 0 20 20" aria-hidden="true"><rect x="5.5" y="5.5" width="9" height="9" rx="1.6" fill="currentColor"/></svg>
      </button>
      <button v-else type="submit" class="round send" aria-label="Send" title="Send (Enter)" :disabled="!text.trim()">
        <svg viewBox="0 0 20 20" aria-hidden="true"><path d="M10 16V4.8M5 9.4l5-5 5 5" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/></svg>
      </button>
    </form>`,
  props: { busy: Boolean, placeholder: String, takesFiles: Boolean },
  emits: ["send", "stop", "file"],
  data: () => ({ text: sessionStorage.getItem(draft()) ?? "" }), // a reload, and a server that was started again, leave it
  watch: {
    text(text) {
      if (text) sessionStorage.setItem(draft(), text);
      else sessionStorage.removeItem(draft());
    },
  },
  mounted() {
    this.keys = (event) => {
      const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
      const modal = document.querySelector(".q-dialog");
      if (modal) return;
      if ((event.key === "k" && (event.ctrlKey || event.metaKey)) || (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey)) {
        event.preventDefault();
        this.focus();
      } else if (event.key === "Escape" && this.busy && !window.smalti?.closeTop()) {
        event.preventDefault();
        this.$emit("stop");
      }
    };
    addEventListener("keydown", this.keys);
    this.$nextTick(this.grow);
    if (matchMedia("(pointer: fine)").matches) this.focus();
  },
  beforeUnmount() { removeEventListener("keydown", this.keys); },
  methods: {
    focus() { this.$refs.box.focus(); },
    enter(event) {
      if (event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    },
    send() {
      const text = this.text.trim();
      if (!text || this.busy) return;
      this.text = "";
      this.$nextTick(this.grow);
      window.smalti?.pin();
      this.$emit("send", text);
      this.focus();
    },
    grow() {
      const box = this.$refs.box;
      box.style.height = "auto";
      box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
    },
  },
};
