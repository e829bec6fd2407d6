#include "common/nbd_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace qcow2check {

absl::StatusOr<NbdLibrary> LoadNbdLibrary() {
  // Never closed: the libraries under it do not expect to be unloaded.
  void* const handle = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return absl::UnavailableError(
        "images on NBD servers need the library libnbd, which cannot be loaded; install it "
        "(Debian: apt install libnbd0)");
  }
  NbdLibrary library;
  const char* missing = nullptr;
#define QCOW2CHECK_NBD_LOAD(name)                                                      \
  library.name = reinterpret_cast<decltype(&nbd_##name)>(dlsym(handle, "nbd_" #name)); \
  if (library.name == nullptr) missing = "nbd_" #name;
  QCOW2CHECK_NBD_FUNCTIONS(QCOW2CHECK_NBD_LOAD)
#undef QCOW2CHECK_NBD_LOAD
  if (missing == nullptr) return library;
  return absl::UnavailableError(
      absl::StrCat("images on NBD servers need a newer libnbd than the "
                   "one installed here: it has no ",
                   missing));
}

}  // namespace qcow2check
