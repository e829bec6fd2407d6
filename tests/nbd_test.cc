// Images on NBD servers: the same report as for the file, whatever the server is like; and what
// comes of servers that fail. (Repairs: nbd_repair_test.cc.)
#include <array>
#include <cstdint>
#include <fstream>
#include <ios>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "common/nbd_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/checked_program.h"
#include "tests/damage.h"
#include "tests/image_builder.h"
#include "tests/nbd_server.h"
#include "tests/program.h"

namespace qcow2check::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Lt;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;
using Bytes = std::vector<uint8_t>;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

CommandResult Program(const Words& arguments) {
  Words argv = {"timeout", "100", QCOW2CHECK_PROGRAM};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunCommand(argv);
}

// What is found out about the image; how it was read aside.
Json ReportOf(const std::string& image, const Words& options = {}) {
  CheckedImage checked = CheckWithProgram(image, options);
  checked.json.erase("filename");
  for (const char* key : {"reads", "bytes-read"}) checked.json["coverage"].erase(key);
  checked.json["exit-code"] = checked.exit_code;
  return checked.json;
}

// An image of 4 MiB with 40 L2 tables, so that there is something to read.
ImageOptions WideOptions() {
  return {.cluster_bits = 12,
          .virtual_size = uint64_t{40} << 21,
          .steps = {WriteClusters{.count = 40, .stride = 512}, TakeSnapshot{},
                    WriteClusters{.first = 1, .count = 20, .stride = 512}}};
}

class NbdTest : public ::testing::Test {
 protected:
  void SetUp() override { QCOW2CHECK_SKIP_WITHOUT_NBDKIT(); }

  std::string Store(const Bytes& bytes) { return dir_.Write("image.qcow2", bytes); }
  std::string StoreWide() { return Store(BuildImage(WideOptions()).bytes); }
  // With a half that is not kept as the start of the export.
  std::string StoreGarbage() {
    Bytes bytes(2 * kHalf);
    FillWithGarbage(bytes, 0, bytes.size());
    return Store(bytes);
  }
  static constexpr uint64_t kHalf = 512 << 10;

  TempDir dir_;
  const std::string log_ = dir_.Path("log");
};

// --- The same report from every server ---

TEST_F(NbdTest, EveryServerGivesTheReportOfTheFile) {
  BuiltImage leaky = BuildImage(WideOptions());
  SetL2Entry(leaky, 0, 0);
  BuiltImage crossed = BuildImage(FieldImageOptions());
  TwoGuestOneHost(crossed);
  BuiltImage lost = BuildImage(FieldImageOptions());
  L2HasText(lost);
  for (const BuiltImage& image : {BuildImage(WideOptions()), leaky, crossed, lost}) {
    const std::string path = Store(image.bytes);
    const Json expected = ReportOf(path);
    {
      const NbdServer server({"nbdkit", "-r", "file", path});
      EXPECT_EQ(ReportOf(server.uri()), expected);
      EXPECT_EQ(ReportOf(server.uri("any-name")), expected);
    }
    {
      const NbdServer server({"nbdkit", "-r", "file", path}, Transport::kLoopback);
      EXPECT_EQ(ReportOf(server.uri()), expected);
    }
    if (!HaveProgram("qemu-nbd")) continue;
    // Serves one client, and ends with it.
    const NbdServer server({"qemu-nbd", "-r", "-f", "raw", path});
    EXPECT_EQ(ReportOf(server.uri()), expected);
  }
}

TEST_F(NbdTest, WhatServersWantOfRequestsChangesNothing) {
  const std::string path = StoreWide();
  const Json expected = ReportOf(path);
  const Words filters[] = {
      {"--filter=noextents"},
      // Whole blocks, and few at a time.
      {"--filter=blocksize-policy", "blocksize-error-policy=error", "blocksize-minimum=4096",
       "blocksize-preferred=4096", "blocksize-maximum=8192"},
      {"--filter=error", "error-extents-rate=100%"},
      {"--filter=noparallel", "serialize=requests"},
      {"--no-sr"},  // no structured replies, so no block status
  };
  for (const Words& filter : filters) {
    Words argv = {"nbdkit", "-r", filter[0], "file", path};
    argv.insert(argv.end(), filter.begin() + 1, filter.end());
    const NbdServer server(argv);
    EXPECT_EQ(ReportOf(server.uri()), expected) << filter[0];
  }
}

TEST_F(NbdTest, AnExportMayEndAnywhere) {
  for (const uint64_t cut : {1, 511, 512, 1000}) {
    BuiltImage image = BuildImage(WideOptions());
    Truncate(image.bytes, image.bytes.size() - cut);
    const std::string path = Store(image.bytes);
    const NbdServer server({"nbdkit", "-r", "file", path});
    EXPECT_EQ(ReportOf(server.uri()), ReportOf(path)) << cut;
  }
}

TEST_F(NbdTest, WhatAServerUnpacksCanBeChecked) {
  if (!HaveProgram("xz")) GTEST_SKIP() << "xz not found";
  const std::string path = StoreWide();
  ASSERT_EQ(RunCommand({"xz", "--keep", path}).exit_code, 0);
  const NbdServer server({"nbdkit", "-r", "--filter=xz", "file", path + ".xz"});
  EXPECT_EQ(ReportOf(server.uri()), ReportOf(path));
}

TEST_F(NbdTest, UnderTlsToo) {
  if (!HaveProgram("psktool")) GTEST_SKIP() << "psktool not found";
  const std::string path = StoreWide();
  const std::string keys = dir_.Path("keys.psk");
  ASSERT_EQ(RunCommand({"psktool", "-u", "alice", "-p", keys}).exit_code, 0);
  for (const Transport transport : {Transport::kUnixSocket, Transport::kLoopback}) {
    const NbdServer server({"nbdkit", "-r", "--tls=require", "--tls-psk=" + keys, "file", path},
                           transport);
    EXPECT_EQ(ReportOf(server.tls_uri("tls-psk-file=" + keys)), ReportOf(path));
    const CommandResult refused = Program({server.uri()});
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_THAT(refused.err, HasSubstr("server requires TLS"));
  }
}

TEST_F(NbdTest, InspectAndALookAtAnImageInUseWorkThere) {
  BuiltImage image = BuildImage(WideOptions());
  SetL2Entry(image, 0, 0);
  const std::string path = Store(image.bytes);
  const NbdServer server({"nbdkit", "-r", "file", path});
  EXPECT_EQ(ReportOf(server.uri(), {"-U"}), ReportOf(path, {"-U"}));
  Json here = Json::parse(Program({"inspect", "--json", path}).out);
  Json there = Json::parse(Program({"inspect", "--json", server.uri()}).out);
  EXPECT_EQ(there["filename"], server.uri());
  here.erase("filename");
  there.erase("filename");
  EXPECT_EQ(there, here);
  // A server for one client must do for all looks.
  if (!HaveProgram("qemu-nbd")) GTEST_SKIP() << "qemu-nbd not found";
  const NbdServer single({"qemu-nbd", "-r", "-f", "raw", path});
  EXPECT_EQ(ReportOf(single.uri(), {"-U"}), ReportOf(path, {"-U"}));
}

// --- How it is read ---

absl::StatusOr<std::unique_ptr<NbdFile>> OpenSlow(const NbdServer& server) {
  return NbdFile::Open(server.uri(), {});
}

TEST_F(NbdTest, ManyReadsAreUnderWayAtOnce) {
  const std::string path = StoreGarbage();
  const Bytes bytes = ReadFile(path);
  NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "file", path,
                    "logfile=" + log_, "rdelay=100ms"});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  std::array<std::array<uint8_t, 100>, 32> parts;
  std::vector<ReadRequest> requests;
  for (size_t i = 0; i < parts.size(); ++i) {
    requests.push_back({HostOffset{kHalf + i * 4096 + 77}, absl::MakeSpan(parts[i]), {}});
  }
  (*file)->ReadMany(absl::MakeSpan(requests));
  for (size_t i = 0; i < parts.size(); ++i) {
    ASSERT_TRUE(requests[i].status.ok()) << requests[i].status;
    EXPECT_TRUE(
        absl::c_equal(parts[i], absl::MakeConstSpan(bytes).subspan(kHalf + i * 4096 + 77, 100)));
  }
  // nbdkit's own threads are the limit.
  EXPECT_GE(ReadNbdLog(log_).most_at_once, 8u);
}

TEST_F(NbdTest, ACheckHasManyReadsUnderWayAtOnce) {
  // 64 L2 tables with data between them.
  const BuiltImage image = BuildImage({.cluster_bits = 12,
                                       .virtual_size = uint64_t{128} << 20,
                                       .steps = {WriteClusters{.count = 64, .stride = 512}}});
  TempDir dir;
  const std::string path = dir.Write("wide.qcow2", image.bytes);
  NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "file", path,
                    "logfile=" + log_, "rdelay=100ms"});
  const CommandResult result = RunCommand({QCOW2CHECK_PROGRAM, server.uri()});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_GE(ReadNbdLog(log_).most_at_once, 8u);
}

TEST_F(NbdTest, ThreadsDoNotWaitForEachOther) {
  const std::string path = StoreGarbage();
  const Bytes bytes = ReadFile(path);
  NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "file", path,
                    "logfile=" + log_, "rdelay=300ms"});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  std::array<bool, 8> good = {};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < good.size(); ++i) {
    threads.emplace_back([&, i] {
      Bytes part(5000);
      good[i] = (*file)->ReadAt(HostOffset{kHalf + i * 6000}, absl::MakeSpan(part)).ok() &&
                absl::c_equal(part, absl::MakeConstSpan(bytes).subspan(kHalf + i * 6000, 5000));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(good, Each(true));
  EXPECT_GE(ReadNbdLog(log_).most_at_once, 4u);
}

TEST_F(NbdTest, ALargeReadTravelsInPieces) {
  Bytes bytes(5 << 20);
  FillWithGarbage(bytes, 0, bytes.size());
  const std::string path = Store(bytes);
  NbdServer server({"nbdkit", "-r", "--filter=log", "file", path, "logfile=" + log_});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  Bytes read(bytes.size() + 100);
  ASSERT_TRUE((*file)->ReadAt(HostOffset{300}, absl::MakeSpan(read)).ok());
  Bytes expected(bytes.begin() + 300, bytes.end());
  expected.resize(read.size());  // zeros behind the end
  EXPECT_TRUE(read == expected);
  EXPECT_GE(ReadNbdLog(log_).Of("Read").size(), 5u);
}

// Each of them says where the next one is: on a slow network they come with one answer.
TEST_F(NbdTest, HeaderAndFirstTablesAreOneRead) {
  const Bytes bytes = BuildImage({.virtual_size = 1 << 20, .steps = {WriteClusters{}}}).bytes;
  ASSERT_GT(bytes.size(), size_t{256} << 10);
  const std::string path = Store(bytes);
  NbdServer server({"nbdkit", "-r", "--filter=log", "file", path, "logfile=" + log_});
  EXPECT_EQ(ReportOf(server.uri()), ReportOf(path));
  server.Stop();
  // The other is of the L2 table.
  EXPECT_THAT(ReadNbdLog(log_).Of("Read"), SizeIs(2));
}

TEST_F(NbdTest, ABadSectorBesideTheHeaderKeepsNothingElseFromBeingRead) {
  Bytes bytes(2 * kHalf);
  FillWithGarbage(bytes, 0, bytes.size());
  const std::string path = Store(bytes);
  NbdServer server({"nbdkit", "eval", "get_size=echo " + absl::StrCat(bytes.size()),
                    "pread=[ $(($4+$3)) -gt 100000 ] && { echo EIO bad >&2; exit 1; }; dd if=" +
                        path + " iflag=skip_bytes,count_bytes skip=$4 count=$3 2>/dev/null"});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  Bytes start(4096);
  ASSERT_TRUE((*file)->ReadAt(HostOffset{8192}, absl::MakeSpan(start)).ok());
  EXPECT_TRUE(absl::c_equal(start, absl::MakeConstSpan(bytes).subspan(8192, 4096)));
  EXPECT_FALSE((*file)->ReadAt(HostOffset{99999}, absl::MakeSpan(start)).ok());
}

TEST_F(NbdTest, HolesAreNotRead) {
  // 1 TiB with clusters of 4 KiB: an L1 table of 4 MiB, all of it a hole.
  const std::string path = dir_.Path("sparse.qcow2");
  const Bytes small = BuildImage({.cluster_bits = 12, .virtual_size = uint64_t{1} << 40}).bytes;
  const std::string dense = Store(small);
  ASSERT_EQ(RunCommand({"cp", "--sparse=always", dense, path}).exit_code, 0);
  const Json expected = ReportOf(path);
  const auto bytes_read = [&](const Words& words) {
    Words argv = {"nbdkit", "-r", "--filter=log"};
    argv.insert(argv.end(), words.begin(), words.end());
    argv.insert(argv.end(), {"file", path, "logfile=" + log_});
    NbdServer server(argv);
    EXPECT_EQ(ReportOf(server.uri()), expected);
    server.Stop();
    return ReadNbdLog(log_).BytesOf("Read");
  };
  const uint64_t without_holes = bytes_read({"--filter=noextents"});
  EXPECT_THAT(without_holes, Ge(4u << 20));
  const CheckedImage local = CheckWithProgram(path);
  if (local.bytes_read() > without_holes / 2) GTEST_SKIP() << "this file system has no holes";
  EXPECT_THAT(bytes_read({}), Lt(without_holes / 2));
}

TEST_F(NbdTest, HolesAreTold) {
  // Data, a hole, data, a hole to the end.
  const std::string path = dir_.Path("holes");
  const std::string block = dir_.Write("block", Bytes(1 << 20, 7));
  for (const char* at : {"0", "100"}) {
    ASSERT_EQ(RunCommand({"dd", "if=" + block, "of=" + path, "bs=1M", "conv=notrunc",
                          absl::StrCat("seek=", at)})
                  .exit_code,
              0);
  }
  ASSERT_EQ(RunCommand({"truncate", "-s", "3G", path}).exit_code, 0);
  NbdServer server({"nbdkit", "-r", "--filter=log", "file", path, "logfile=" + log_});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  const uint64_t mib = 1 << 20;
  const Extent first = (*file)->NextData(HostOffset{5000});
  if (first.end_bytes > 2 * mib) GTEST_SKIP() << "this file system has no holes";
  EXPECT_EQ(first.begin_bytes, 5000u);
  EXPECT_EQ(first.end_bytes, mib);
  const Extent second = (*file)->NextData(HostOffset{mib});
  EXPECT_EQ(second.begin_bytes, 100 * mib);
  EXPECT_EQ(second.end_bytes, 101 * mib);
  EXPECT_TRUE((*file)->NextData(HostOffset{101 * mib}).empty());
  EXPECT_TRUE((*file)->NextData(HostOffset{5000 * mib}).empty());
  // Asking again does not ask the server.
  const size_t asked = ReadNbdLog(log_).Of("Extents").size();
  EXPECT_TRUE((*file)->NextData(HostOffset{2000 * mib}).empty());
  EXPECT_EQ(ReadNbdLog(log_).Of("Extents").size(), asked);
}

TEST_F(NbdTest, ManyHolesAreTold) {
  // 1 MiB of data, then 1 MiB that is a hole, and so on, to 192 MiB.
  const std::string path = dir_.Path("holes");
  std::ofstream image(path, std::ios::binary);
  const uint64_t mib = 1 << 20;
  for (uint64_t i = 0; i < 96; ++i) {
    image.seekp(static_cast<std::streamoff>(2 * i * mib));
    image << std::string(mib, 'x');
  }
  image.close();
  ASSERT_EQ(RunCommand({"truncate", "-s", "192M", path}).exit_code, 0);
  NbdServer server({"nbdkit", "-r", "--filter=log", "file", path, "logfile=" + log_});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  if (!(*file)->IsHole({mib, 2 * mib})) GTEST_SKIP() << "this file system has no holes";
  std::vector<Extent> extents;
  std::vector<bool> expected;
  const auto add = [&](uint64_t begin, uint64_t end, bool is_hole) {
    extents.push_back({begin, end});
    expected.push_back(is_hole);
  };
  for (uint64_t i = 0; i < 96; ++i) {
    add(2 * i * mib, (2 * i + 1) * mib, false);
    add((2 * i + 1) * mib, (2 * i + 2) * mib, true);
    add((2 * i + 1) * mib + 100, (2 * i + 1) * mib + 300, true);
  }
  add(mib - 1, 2 * mib, false);         // one byte of data before the hole
  add(mib, 192 * mib, false);           // data in it
  add(191 * mib, 192 * mib, true);      // to the end of the export
  add(3 * mib + 5, 3 * mib + 6, true);  // not in the order of places
  const size_t asked = ReadNbdLog(log_).Of("Extents").size();
  EXPECT_EQ((*file)->FindHoles(extents), expected);
  EXPECT_LT(ReadNbdLog(log_).Of("Extents").size(), asked + 10);  // those that lie near are one
}

TEST_F(NbdTest, HolesFarApartAreAskedForAtOnce) {
  NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "null", "1T",
                    "delay-extents=50ms", "logfile=" + log_});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<Extent> extents;
  for (uint64_t at = 0; at < uint64_t{1} << 40; at += uint64_t{1} << 36) {
    extents.push_back({at, at + 65536});
  }
  EXPECT_EQ((*file)->FindHoles(extents), std::vector<bool>(extents.size(), true));
  const NbdLog log = ReadNbdLog(log_);
  EXPECT_EQ(log.Of("Extents").size(), extents.size());
  EXPECT_THAT(log.most_extents_at_once, Ge(4u));
}

TEST_F(NbdTest, AnEndlessHoleIsNotFollowedForEver) {
  NbdServer server({"nbdkit", "-r", "--filter=log", "null", "4E", "logfile=" + log_});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  const Extent data = (*file)->NextData(HostOffset{0});
  EXPECT_GT(data.begin_bytes, uint64_t{1} << 34);
  EXPECT_FALSE(data.empty());
  EXPECT_LT(ReadNbdLog(log_).Of("Extents").size(), 50u);
}

TEST_F(NbdTest, AFileIsCheckedWithoutLibnbd) {
  const std::string path = StoreWide();
  const CommandResult result = RunCommand({"env", "LD_DEBUG=files", QCOW2CHECK_PROGRAM, path});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.err, AllOf(HasSubstr("libc.so"), Not(HasSubstr("libnbd"))));
}

// --- What goes wrong ---

// Exit code 1 and one sentence with `words`.
void ExpectError(const CommandResult& result, const std::string& words) {
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, AllOf(StartsWith("qcow2check: "), HasSubstr(words)));
  EXPECT_EQ(absl::c_count(result.err, '\n'), 1) << result.err;
}

TEST_F(NbdTest, WhereNothingIsServedIsAnError) {
  const std::string path = StoreWide();
  ExpectError(Program({"nbd+unix:///?socket=" + dir_.Path("nothing")}),
              "cannot open 'nbd+unix:///?socket=");
  ExpectError(Program({"nbd+unix:///"}), "socket");
  const NbdServer empty({"nbdkit", "-r", "null", "0"});
  ExpectError(Program({empty.uri()}), "is empty");
  if (HaveProgram("qemu-nbd")) {
    const NbdServer named({"qemu-nbd", "-r", "-f", "raw", "-x", "disk", path});
    ExpectError(Program({named.uri("disc")}), "disc");
  }
  const NbdServer plain({"nbdkit", "-r", "file", path});
  ExpectError(Program({plain.tls_uri("")}), "TLS");
  const NbdServer no_image({"nbdkit", "-r", "null", "1M"});
  EXPECT_EQ(Program({no_image.uri()}).exit_code, 63);
}

TEST_F(NbdTest, AMissingLibraryIsSaidPlainly) {
  // The loader finds this instead.
  dir_.Write("libnbd.so.0", Bytes(100, 0));
  const CommandResult result =
      RunCommand({"env", "LD_LIBRARY_PATH=" + dir_.path(), QCOW2CHECK_PROGRAM, "nbd://localhost"});
  ExpectError(result, "install it (Debian: apt install libnbd0)");
}

TEST_F(NbdTest, WhatCannotBeReadIsFound) {
  const std::string path = StoreWide();
  for (const char* rate : {"100%", "30%"}) {
    const NbdServer server(
        {"nbdkit", "-r", "--filter=error", "file", path, absl::StrCat("error-pread-rate=", rate)});
    const CheckedImage checked = CheckWithProgram(server.uri());
    EXPECT_THAT(checked.exit_code, ::testing::AnyOf(0, 1, 2)) << checked.err;
    // All may have been read at the second try.
    EXPECT_TRUE(checked.verdict() == "clean" || checked.Has("unreadable")) << rate;
  }
}

TEST_F(NbdTest, AServerThatDiesEndsTheCheck) {
  const std::string path = StoreWide();
  for (const Words& arguments :
       {Words{}, Words{"-U"}, Words{"--chain"}, Words{"inspect"}, Words{"--repair", "--dry-run"}}) {
    NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "file", path,
                      "logfile=" + log_, "rdelay=1000"});
    std::thread killer([&] {
      WaitForRequest(log_, "Read");
      server.Kill();
    });
    Words words = arguments;
    words.push_back(server.uri());
    ExpectError(Program(words), "the connection to the server is lost");
    killer.join();
    WriteFile(log_, {});
  }
}

TEST_F(NbdTest, EveryReadThatWaitsIsToldOfTheEnd) {
  const std::string path = StoreGarbage();
  NbdServer server({"nbdkit", "-r", "--filter=log", "--filter=delay", "file", path,
                    "logfile=" + log_, "rdelay=1000"});
  const auto file = OpenSlow(server);
  ASSERT_TRUE(file.ok()) << file.status();
  std::array<absl::Status, 4> statuses;
  std::vector<std::thread> threads;
  for (absl::Status& status : statuses) {
    threads.emplace_back([&] {
      // More than can be in flight.
      Bytes bytes(100 * 512);
      std::vector<ReadRequest> requests;
      for (size_t i = 0; i < 100; ++i) {
        requests.push_back(
            {HostOffset{kHalf + i * 4096}, absl::MakeSpan(&bytes[i * 512], 512), {}});
      }
      (*file)->ReadMany(absl::MakeSpan(requests));
      status = requests[99].status;
    });
  }
  WaitForRequest(log_, "Read");
  EXPECT_TRUE((*file)->availability().ok());
  server.Kill();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::IsUnavailable((*file)->availability()));
  std::array<uint8_t, 512> sector;
  EXPECT_TRUE(absl::IsUnavailable((*file)->ReadAt(HostOffset{0}, absl::MakeSpan(sector))));
}

// --- The backing chain ---

std::string Overlay(const TempDir& dir, const std::string& name, const std::string& backing) {
  ImageOptions options = {.virtual_size = 1 << 20};
  options.backing = BackingOptions{backing, "qcow2"};
  return dir.Write(name, BuildImage(options).bytes);
}

TEST_F(NbdTest, ABackingFileOnAServerIsOpenedOnlyForChain) {
  const std::string base = dir_.Write("base", BuildImage({.virtual_size = 1 << 20}).bytes);
  NbdServer server({"nbdkit", "-r", "--filter=log", "file", base, "logfile=" + log_});
  const std::string top = Overlay(dir_, "top.qcow2", server.uri());
  EXPECT_EQ(CheckWithProgram(top).verdict(), "clean");
  EXPECT_EQ(ReadNbdLog(log_).connections, 0u);
  const CheckedImage chain = CheckWithProgram(top, {"--chain"});
  EXPECT_EQ(chain.verdict(), "clean") << chain.json.dump(1);
  EXPECT_EQ(chain.json["chain"][0]["filename"], server.uri());
  EXPECT_EQ(ReadNbdLog(log_).connections, 1u);
}

TEST_F(NbdTest, AnImageOnAServerHasABackingChain) {
  const std::string base = dir_.Write("base", BuildImage({.virtual_size = 1 << 20}).bytes);
  {
    const NbdServer server({"nbdkit", "-r", "file", Overlay(dir_, "top.qcow2", base)});
    const CheckedImage chain = CheckWithProgram(server.uri(), {"--chain"});
    EXPECT_EQ(chain.verdict(), "clean") << chain.json.dump(1);
    EXPECT_EQ(chain.json["chain"][0]["filename"], base);
  }
  {
    const NbdServer server({"nbdkit", "-r", "file", Overlay(dir_, "relative.qcow2", "base")});
    const CheckedImage chain = CheckWithProgram(server.uri(), {"--chain"});
    EXPECT_THAT(chain.TheOnly("chain-missing").dump(), HasSubstr("relative to a folder"));
  }
  const std::string path = dir_.Path("itself.qcow2");
  const NbdServer server({"nbdkit", "-r", "file", Overlay(dir_, "itself.qcow2", "none")});
  Overlay(dir_, "itself.qcow2", server.uri());
  EXPECT_TRUE(CheckWithProgram(server.uri(), {"--chain"}).Has("chain-cycle"));
}

TEST_F(NbdTest, AnImageCannotMakeUsReadLocalFiles) {
  const std::string top =
      Overlay(dir_, "top.qcow2", "nbds://localhost/?tls-psk-file=" + dir_.Path("secret"));
  const CheckedImage chain = CheckWithProgram(top, {"--chain"});
  EXPECT_THAT(chain.TheOnly("chain-missing").dump(), HasSubstr("local file"));
}

}  // namespace
}  // namespace qcow2check::testing
