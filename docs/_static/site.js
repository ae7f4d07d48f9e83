// What the theme leaves out for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll('[role="heading"]:not([aria-level])').forEach((heading) => heading.setAttribute("aria-level", "2"));
  document.querySelectorAll("pre, .table-wrapper").forEach((part) => part.scrollWidth > part.clientWidth && part.setAttribute("tabindex", "0"));
});
