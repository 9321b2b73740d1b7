// The picture that is to be animated goes to the server by itself; the form has its name there.
window.longtake = {
  input() { return document.getElementById("picture-file"); },
  async picture() {
    const file = this.input()?.files[0];
    if (!file) return "";
    try {
      const answer = await fetch("/picture", { method: "POST", body: file });
      const told = await answer.json();
      return told.picture || "!" + told.error.message;
    } catch (error) {
      return "!the picture could not be sent: try again";
    }
  },
  chosen() {
    const shown = document.getElementById("picture-shown");
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    const file = this.input().files[0];
    shown.hidden = !file;
    if (file) shown.src = URL.createObjectURL(file);
  },
  clear() {
    if (!this.input()) return;
    this.input().value = "";
    this.chosen();
  },
  draft() { return sessionStorage.getItem("prompt") || ""; },
  asked() { return new URLSearchParams(location.search).get("video") || ""; },
  shows(video) {
    if (video !== this.asked()) history.replaceState(null, "", video ? "?video=" + video : "/");
  },
};
document.addEventListener("input", (event) => {
  if (event.target.closest("#prompt")) sessionStorage.setItem("prompt", event.target.value);
});
