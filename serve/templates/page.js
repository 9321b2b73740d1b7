// The page's script. The server keeps no state of a page: open panels, the unsent prompt and the
// current video are stored here.
window.longtake = {
  // The picture is uploaded separately. The form holds its name on the server.
  async picture() {
    const file = this.input()?.files[0];
    if (!file) return "";
    try {
      const response = await fetch("/picture", { method: "POST", body: file });
      const content = await response.json();
      return content.picture || "!" + content.error.message;
    } catch (error) {
      return "!the picture could not be sent: try again";
    }
  },
  input() { return document.getElementById("picture-file"); },
  choose(files) {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    if (!picture || !this.input()) return false;
    const one = new DataTransfer();
    one.items.add(picture);
    this.input().files = one.files;
    this.chosen();
    return true;
  },
  chosen() {
    const shown = document.getElementById("picture-shown");
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    const file = this.input().files[0];
    shown.hidden = document.getElementById("picture-clear").hidden = !file;
    if (file) {
      shown.src = URL.createObjectURL(file);
      this.showKept("");
    }
    this.clearProblem(document.getElementById("picture"));
  },
  clear() {
    if (!this.input()) return;
    this.input().value = "";
    this.chosen();
  },
  showKept(picture) {  // the picture of an earlier video
    const line = document.getElementById("picture-kept");
    if (line) line.hidden = !picture;
  },

  // The current video.
  draft() { return sessionStorage.getItem("prompt") || ""; },
  saveDraft(prompt) { sessionStorage.setItem("prompt", prompt); },
  current() { return new URLSearchParams(location.search).get("video") || ""; },
  setAddress(video) {
    if (video !== this.current()) history.pushState(null, "", video ? "?video=" + video : "/");
  },
  show(video) {
    this.write(document.querySelector("#video textarea, #video input"), video);
    this.setAddress(video);
  },
  write(field, text) {
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  },

  // Errors, each below its field.
  async problem(json) {
    document.querySelectorAll(".lt.problem").forEach((each) => this.clearProblem(each.parentElement));
    if (!json) return;
    const { field, message } = JSON.parse(json);
    const panel = document.getElementById("more-settings");
    if (!document.getElementById(field)?.offsetParent) this.open(panel, true);
    const place = await this.appears(field);
    if (!place) return;
    const line = document.createElement("p");
    line.className = "lt error problem";
    line.setAttribute("role", "alert");
    line.textContent = message;
    place.append(line);
    const input = place.querySelector("input, textarea");
    input?.setAttribute("aria-invalid", "true");
    line.scrollIntoView({ block: "nearest" });
  },
  async appears(name) {  // a panel's content is added when it opens
    for (let frame = 0; frame < 60 && !document.getElementById(name); frame++)
      await new Promise(requestAnimationFrame);
    return document.getElementById(name);
  },
  clearProblem(place) {
    place?.querySelectorAll(".problem").forEach((each) => each.remove());
    place?.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  },
  submitted(video, problem) {
    this.problem(problem);
    if (video === this.current()) return;
    this.saveDraft("");
    this.setAddress(video);
    document.getElementById("status").scrollIntoView({ block: "nearest" });
  },

  // Panels stay open over a reload.
  panels: (() => {
    try {
      return JSON.parse(localStorage.getItem("longtake.panels")) || {};
    } catch (error) {  // not written by this page
      return {};
    }
  })(),
  remember(name, open) {
    this.panels[name] = open;
    localStorage.setItem("longtake.panels", JSON.stringify(this.panels));
  },
  open(panel, open) {
    const head = panel.querySelector("button.label-wrap");
    if (head && head.classList.contains("open") !== open) head.click();
  },

  // A video is deleted after five seconds, within which the user can undo it.
  pendingDeletes: new Map(),
  remove(video) {
    if (!video || this.pendingDeletes.has(video)) return;
    this.pendingDeletes.set(video, setTimeout(() => this.delete(video), 5000));
    this.fade();
  },
  restore() {
    this.pendingDeletes.forEach(clearTimeout);
    this.pendingDeletes.clear();
    this.fade();
  },
  async delete(video) {
    const response = await fetch("/v1/videos/" + video, { method: "DELETE", keepalive: true })
      .catch(() => null);
    if (response && (response.ok || response.status === 404)) {
      if (video === this.current()) this.show("");
    } else this.announce("The video could not be deleted.");
    setTimeout(() => { this.pendingDeletes.delete(video); this.fade(); }, 2000);
  },
  fade() {
    const rules = [...this.pendingDeletes.keys()].map((video) => `[data-video="${video}"]`);
    this.sheet ||= document.head.appendChild(document.createElement("style"));
    this.sheet.textContent = rules.length
      ? `.gallery :is(${rules}) { display: none } #result :is(${rules}) { opacity: .35 }` : "";
    const bar = document.getElementById("undo");
    bar.hidden = !rules.length;
    bar.querySelector("span").textContent =
      rules.length > 1 ? `${rules.length} videos are deleted.` : "The video is deleted.";
  },

  // The title, announcements and panels of the current video.
  announce(text) { document.getElementById("announcement").textContent = text; },
  update() {
    const shown = document.querySelector("#status [data-title]");
    if (!shown) return;
    const { title, announcement } = shown.dataset;
    document.title = title ? `${title} – longtake` : "longtake";
    if (announcement !== this.announced) this.announce(this.announced = announcement);
    document.querySelectorAll("details[data-panel]").forEach((each) => {
      const open = !!this.panels[each.dataset.panel];
      if (each.open !== open) each.open = open;
    });
    if (matchMedia("(prefers-reduced-motion: reduce)").matches)
      shown.querySelectorAll("video[autoplay]").forEach((video) => {
        video.autoplay = false;
        video.pause();
      });
  },
  ready() {
    new MutationObserver(() => this.update()).observe(
      document.getElementById("result"),
      { subtree: true, childList: true, attributes: true, attributeFilter: ["open", "data-title"] },
    );
    this.update();
    for (const name of ["more-settings", "engine"])
      if (this.panels[name]) this.open(document.getElementById(name), true);
  },
};
document.addEventListener("input", (event) => {
  const field = event.target;
  if (field.closest("#prompt")) longtake.saveDraft(field.value);
  if (field.id === "picture-file") longtake.chosen();
  else longtake.clearProblem(field.closest(".field"));
});
document.addEventListener("focusin", (event) => {
  if (event.target.closest(".number")) event.target.inputMode = "decimal";
});
document.addEventListener("keydown", (event) => {
  const generates = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (!generates || !event.target.closest("#form")) return;
  event.preventDefault();
  document.getElementById("generate").click();
});
document.addEventListener("click", (event) => {
  const target = event.target;
  const head = target.closest("button.label-wrap"), panel = head?.closest("#more-settings, #engine");
  if (panel) longtake.remember(panel.id, !head.classList.contains("open"));
  const details = target.closest("summary")?.parentElement;
  if (details?.dataset.panel) longtake.remember(details.dataset.panel, !details.open);
  const example = target.closest("[data-example]");
  if (example) longtake.write(document.querySelector("#prompt textarea"), example.textContent);
  const removed = target.closest("[data-remove]");
  if (removed) longtake.remove(removed.dataset.remove);
  if (target.closest("#undo button")) longtake.restore();
  if (target.closest("#picture-clear")) longtake.clear();
  const link = target.closest(".gallery a");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    longtake.show(link.closest("[data-video]").dataset.video);
    document.getElementById("status").scrollIntoView({ block: "nearest" });
  }
}, true);  // capture: before a click changes the panel
document.addEventListener("paste", (event) => {
  if (longtake.choose(event.clipboardData.files)) event.preventDefault();
});
document.addEventListener("dragover", (event) => {
  if (longtake.input() && event.dataTransfer.types.includes("Files")) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (longtake.input() && longtake.choose(event.dataTransfer.files)) event.preventDefault();
});
window.addEventListener("popstate", () => longtake.show(longtake.current()));
window.addEventListener("pagehide", () => {
  longtake.pendingDeletes.forEach((timer, video) => { clearTimeout(timer); longtake.delete(video); });
});
