// The page's script. The server keeps no state of a page: open panels, the unsent prompt and the
// current video are stored here.
window.longtake = {
  // Pictures are uploaded separately. The form holds their names on the server.
  pictures() { return [...document.querySelectorAll(".lt.picture")]; },
  file(block) { return block.querySelector("input.file"); },
  async upload(block) {
    const file = this.file(block).files[0];
    if (!file) return "";
    try {
      const response = await fetch("/picture", { method: "POST", body: file });
      const content = await response.json();
      return content.picture || "!" + content.error.message;
    } catch (error) {
      return "!the picture could not be sent: try again";
    }
  },
  uploads(kept) {  // of each picture, or the earlier video's where none is chosen
    return Promise.all(
      this.pictures().map(async (block, at) => await this.upload(block) || kept[at]));
  },
  choose(files, block) {
    const picture = [...files].find((file) => file.type.startsWith("image/"));
    const blocks = this.pictures();
    block ||= blocks.find((each) => !this.file(each).files.length) || blocks[0];
    if (!picture || !block) return false;
    const one = new DataTransfer();
    one.items.add(picture);
    this.file(block).files = one.files;
    this.chosen(block);
    return true;
  },
  chosen(block) {
    const shown = block.querySelector("img");
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    const file = this.file(block).files[0];
    shown.hidden = block.querySelector(".clear").hidden = !file;
    if (file) {
      shown.src = URL.createObjectURL(file);
      block.querySelector(".kept").hidden = true;
    }
    this.clearProblem(block);
  },
  clear(block) {
    this.file(block).value = "";
    this.chosen(block);
  },
  clearAll() { this.pictures().forEach((block) => this.clear(block)); },
  showKept(at, picture) {  // a picture of an earlier video
    const block = this.pictures()[at];
    if (block) block.querySelector(".kept").hidden = !picture;
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
  if (field.matches(".picture .file")) longtake.chosen(field.closest(".picture"));
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
  if (target.closest(".picture .clear")) longtake.clear(target.closest(".picture"));
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
  if (longtake.pictures().length && event.dataTransfer.types.includes("Files"))
    event.preventDefault();
});
document.addEventListener("drop", (event) => {
  const block = event.target.closest(".lt.picture");
  if (longtake.choose(event.dataTransfer.files, block)) event.preventDefault();
});
window.addEventListener("popstate", () => longtake.show(longtake.current()));
window.addEventListener("pagehide", () => {
  longtake.pendingDeletes.forEach((timer, video) => { clearTimeout(timer); longtake.delete(video); });
});
