// The picture that is to be animated never passes through an upload: it goes with the form.
window.longtake = {
  most: MOST_BYTES,
  async picture() {
    const input = document.getElementById("picture-file");
    const file = input && input.files[0];
    if (!file) return "";
    if (file.size > this.most) return "too large";
    return await new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = () => done("unreadable");
      reader.readAsDataURL(file);
    });
  },
  chosen(input) {
    const shown = document.getElementById("picture-shown");
    if (shown.src.startsWith("blob:")) URL.revokeObjectURL(shown.src);
    const file = input.files[0];
    shown.hidden = !file;
    if (file) shown.src = URL.createObjectURL(file);
  },
  asked() { return new URLSearchParams(location.search).get("video") || ""; },
  shows(video) {
    if (video !== this.asked()) history.replaceState(null, "", video ? "?video=" + video : "/");
  },
};
