// The name of a kernel, for messages: from the symbol table of the library that holds it, local names included (kernels
// tend to stand in unnamed namespaces, which the dynamic linker does not know).
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#if defined(__linux__)
#include <elf.h>
#include <link.h>
#endif

#include "block.h"

namespace qb::emulator {
namespace {

std::string readable(const char* symbol) {
  int status = 0;
  char* name = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  const std::string out = status == 0 ? name : symbol;
  std::free(name);
  return out;
}

#if defined(__linux__)
// The symbol at `offset` from where the library was loaded; empty if its table was stripped.
std::string find_symbol(const char* library, uint64_t offset) {
  std::ifstream file(library, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < sizeof(ElfW(Ehdr))) return "";
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 0; s < sections[i].sh_size / sizeof(ElfW(Sym)); ++s) {
      if ((symbols[s].st_info & 15) == STT_FUNC && symbols[s].st_value == offset) return names + symbols[s].st_name;
    }
  }
  return "";
}
#endif

}  // namespace

std::string function_name(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0) return "(unnamed)";
  if (info.dli_saddr == function && info.dli_sname != nullptr) return readable(info.dli_sname);
#if defined(__linux__)
  const uint64_t offset = reinterpret_cast<uint64_t>(function) - reinterpret_cast<uint64_t>(info.dli_fbase);
  const std::string symbol = find_symbol(info.dli_fname, offset);
  if (!symbol.empty()) return readable(symbol.c_str());
#endif
  return "(unnamed)";
}

}  // namespace qb::emulator
